// imapflow_fetch.cjs: fetch a whole INBOX with imapflow and print it as JSON: what was announced, and each message.
// Everything arrives in the environment: PORT, STARTTLS (1 or empty), CA (a file), NAME, PASSWORD.
// CommonJS, because NODE_PATH is not read for ES modules.
'use strict';
const fs = require('node:fs');
const { ImapFlow } = require('imapflow');

async function main(env) {
  const starttls = env.STARTTLS === '1';
  const client = new ImapFlow({
    host: 'localhost',
    port: Number(env.PORT),
    secure: !starttls,
    doSTARTTLS: starttls,
    tls: { ca: fs.readFileSync(env.CA) },
    auth: { user: env.NAME, pass: env.PASSWORD },
    logger: false,
  });
  await client.connect();
  const lock = await client.getMailboxLock('INBOX');
  const messages = [];
  try {
    for await (const message of client.fetch('1:*', { source: true })) {
      messages.push(message.source.toString('base64'));
    }
  } finally {
    lock.release();
  }
  const found = { exists: client.mailbox.exists, compressed: Boolean(client._inflate), messages };
  await client.logout();
  process.stdout.write(JSON.stringify(found));
}

main(process.env).catch((error) => {
  console.error(error);
  process.exit(1);
});
