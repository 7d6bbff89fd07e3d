// imapflow_token.cjs: what imapflow_fetch.cjs does, with the access token in TOKEN in place of a password.
// imapflow takes OAUTHBEARER where that is offered; with MECHANISM=XOAUTH2 it is not told of the offer.
'use strict';
const imapflow = require('imapflow');
const { TOKEN, MECHANISM } = process.env;

class WithToken extends imapflow.ImapFlow {
  constructor(options) {
    super({ ...options, auth: { user: options.auth.user, accessToken: TOKEN } });
  }

  async authenticate() {
    if (MECHANISM === 'XOAUTH2') this.capabilities.delete('AUTH=OAUTHBEARER');
    return super.authenticate();
  }
}

imapflow.ImapFlow = WithToken;
require('./imapflow_fetch.cjs');
