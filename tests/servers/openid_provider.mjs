// openid_provider.mjs: a real OpenID provider on loopback, for the tests.
// Everything arrives in the environment: PORT, CERTIFICATE and PRIVATE_KEY (PEM files), KEYS (a file: the private JWK
// set it signs with), USERS (JSON: names and passwords).
// Tokens come by the password grant, which no provider should have and which saves the tests a browser. `resource` says
// what kind of token: urn:mail:rs256, urn:mail:es256, urn:mail:opaque, all for the audience `imap`; urn:mail:plain-typ,
// whose header says JWT in place of at+jwt, which Dovecot 2.3 asks for; urn:mail:other, for another audience.
import fs from 'node:fs';
import https from 'node:https';
import { Provider, errors } from 'oidc-provider';

const { PORT, CERTIFICATE, PRIVATE_KEY, KEYS, USERS } = process.env;
const issuer = `https://localhost:${PORT}`;
const users = new Map(Object.entries(JSON.parse(USERS)));
const LIFE_SECONDS = 300;

const resourceServer = (resource) => ({
  scope: 'imap',
  audience: resource === 'urn:mail:other' ? 'other' : 'imap',
  accessTokenTTL: LIFE_SECONDS,
  accessTokenFormat: resource === 'urn:mail:opaque' ? 'opaque' : 'jwt',
  jwt: { sign: { alg: resource === 'urn:mail:es256' ? 'ES256' : 'RS256' } },
});

const confidential = (client_id, client_secret, grant_types) => ({
  client_id, client_secret, grant_types, scope: 'imap', redirect_uris: [], response_types: [],
  token_endpoint_auth_method: 'client_secret_basic',
});

const provider = new Provider(issuer, {
  jwks: JSON.parse(fs.readFileSync(KEYS)),
  clients: [
    confidential('webmail', 'webmail: its secret+1', ['password', 'client_credentials']),
    confidential('imap-porter', 'porter: its secret+1', ['client_credentials']),
  ],
  scopes: ['imap'],
  findAccount: (_, sub) => users.has(sub) && { accountId: sub, claims: async () => ({ sub }) },
  // Of a client's own token there is no account.
  extraTokenClaims: (_, { accountId }) => accountId && {
    email: `${accountId}@test.example`, email_verified: accountId !== 'bob', mail_host: 'd2',
  },
  formats: {
    customizers: {
      jwt: (_, { resourceServer: server }, parts) => {
        if (server.identifier() === 'urn:mail:plain-typ') parts.header = { ...parts.header, typ: 'JWT' };
      },
    },
  },
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => 'urn:mail:rs256',
      useGrantedResource: () => true,
      getResourceServerInfo: (_, resource) => resourceServer(resource),
    },
  },
  ttl: { AccessToken: LIFE_SECONDS, ClientCredentials: LIFE_SECONDS, Grant: LIFE_SECONDS },
});

provider.registerGrantType('password', async (ctx) => {
  const { params: { username, password, resource = 'urn:mail:rs256' }, client } = ctx.oidc;
  if (!users.has(username) || users.get(username) !== password) throw new errors.InvalidGrant('wrong password');
  const grant = new provider.Grant({ accountId: username, clientId: client.clientId });
  grant.addResourceScope(resource, 'imap');
  const token = new provider.AccessToken({
    accountId: username, client, grantId: await grant.save(), gty: 'password', scope: 'imap',
  });
  token.resourceServer = new provider.ResourceServer(resource, resourceServer(resource));
  ctx.body = { access_token: await token.save(), token_type: 'Bearer', expires_in: token.expiration, scope: 'imap' };
}, ['username', 'password', 'resource']);

provider.on('server_error', (_, error) => console.error(error));
https.createServer({ cert: fs.readFileSync(CERTIFICATE), key: fs.readFileSync(PRIVATE_KEY) }, provider.callback())
  .listen(Number(PORT), '127.0.0.1');
