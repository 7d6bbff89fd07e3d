"""Bearer tokens: JWTs by their issuer's keys, and opaque tokens by asking the issuer.

strict_json     JSON from strangers, bounded before it is parsed
tokens          JWTs and keys: the only door to PyJWT
keys            where the keys come from, and when they are fetched again
introspection   asking the issuer
claims          from claims to an identity
source          all of them as one identity source
"""
