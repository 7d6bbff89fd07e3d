"""thunderbird_fetch.py PORT NAME PASSWORD COUNT: have a Thunderbird that runs headless download an INBOX.

PORT is Marionette's. Prints how many messages the folder shows and how many of them are on disk.
Run as a program of its own: the driver's modules don't hold to this project's rule on warnings.
"""

from __future__ import annotations

import json
import sys
import time

from marionette_driver.marionette import Marionette

PATIENCE_SECONDS = 40
# A wish that reaches it while it is busy with the same folder is forgotten: with nothing moving, wish again.
ASK_AGAIN_SECONDS = 3

STORE_PASSWORD = """
let [name, password, done] = arguments;
(async () => {
  try {
    let login = Cc["@mozilla.org/login-manager/loginInfo;1"].createInstance(Ci.nsILoginInfo);
    login.init("imap://localhost", null, "imap://localhost", name, password, "", "");
    await Services.logins.addLoginAsync(login);
    done("stored");
  } catch (error) { done("error " + error); }
})();
"""
HEAD = """
const {MailServices} = ChromeUtils.importESModule("resource:///modules/MailServices.sys.mjs");
let server = MailServices.accounts.findServer(arguments[0], "localhost", "imap");
let inbox = () => server.rootFolder.subFolders.find(folder => folder.flags & Ci.nsMsgFolderFlags.Inbox);
"""
GET_NEW_MESSAGES = """
server.performExpand(null);
server.getNewMessages(inbox() || server.rootFolder, null, null);
"""
COUNT = """
let folder = inbox();
if (!folder) return [0, 0];
let offline = 0;
for (let header of folder.messages) if (header.flags & Ci.nsMsgMessageFlags.Offline) offline++;
return [folder.getTotalMessages(false), offline];
"""
DOWNLOAD = "inbox().QueryInterface(Ci.nsIMsgImapMailFolder); inbox().downloadAllForOffline(null, null);"


def main(port: int, name: str, password: str, want: int) -> int:
    browser = Marionette(host="127.0.0.1", port=port, socket_timeout=20)
    browser.start_session()
    browser.set_context("chrome")
    browser.timeout.script = 15
    stored = browser.execute_async_script(STORE_PASSWORD, script_args=(name, password))
    assert stored == "stored", stored
    shown = downloaded = 0
    ask_at = 0.0
    deadline = time.monotonic() + PATIENCE_SECONDS
    while downloaded < want and time.monotonic() < deadline:
        if time.monotonic() >= ask_at:
            browser.execute_script(HEAD + (DOWNLOAD if shown else GET_NEW_MESSAGES), script_args=(name,))
            ask_at = time.monotonic() + ASK_AGAIN_SECONDS
        time.sleep(0.2)
        before = shown, downloaded
        shown, downloaded = browser.execute_script(HEAD + COUNT, script_args=(name,))
        if (shown, downloaded) != before:
            ask_at = time.monotonic() + ASK_AGAIN_SECONDS if downloaded else 0.0
    print(json.dumps({"shown": shown, "downloaded": downloaded}))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
