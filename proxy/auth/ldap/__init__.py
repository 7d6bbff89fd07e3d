"""Identity from a directory: an entry is found or named by a template, and the password is tried by binding as it.

template        names in filters and in distinguished names, escaped
entries         from what an entry says to an identity
verdicts        what result codes come to: a no, or an outage
bounded_socket  what ldap3 reads from: deadlines, sizes, and what went wrong in words
connection      one connection, blocking: the only door to ldap3
connections     the pair with which one thread talks to one server
breaker         whether a server is asked at all
server          one server: its threads, and the connections that idle
source          all of them as one identity source
"""
