'use strict';

// Hears of freezes and resumes from tell-app. Copy it into your program; README.md says what is in the files.

const fs = require('fs');
const path = require('path');

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/**
 * Calls `freezing(facts)` before a freeze, which is waited for, and `running(facts)` after it. Both may return promises.
 *
 * To the facts come `resumed`, whether this is after a resume, and `clone`, whether the job has another name than when it
 * was frozen.
 */
class Told {
  constructor(freezing, running, { directory = process.env.TELL_APP_DIR, pace = 50 } = {}) {
    Object.assign(this, { freezing, running, directory, pace, frozenAs: undefined });
    this.known = this.read().id ?? '';
    this.heard();
    this.listen();
  }

  // Short files, read at once: the thread pool may have much to do before a freeze.
  read() {
    let text;
    try {
      text = fs.readFileSync(path.join(this.directory, 'state'), 'utf8');
    } catch (error) {
      // Another host, before anything was told there.
      if (error.code === 'ENOENT') return {};
      throw error;
    }
    const pair = (line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)];
    return Object.fromEntries(text.split('\n').filter(Boolean).map(pair));
  }

  heard() {
    fs.mkdirSync(this.directory, { recursive: true });
    const name = path.join(this.directory, 'heard');
    fs.writeFileSync(`${name}.new`, this.known);
    fs.renameSync(`${name}.new`, name);
  }

  async listen() {
    for (;;) {
      const facts = this.read();
      if (facts.id && facts.id !== this.known) {
        this.known = facts.id;
        if (facts.moment === 'before-freeze') {
          this.frozenAs = facts.job;
          await this.freezing(facts);
        } else {
          facts.resumed = facts.moment === 'after-resume';
          facts.clone = this.frozenAs !== undefined && this.frozenAs !== facts.job;
          await this.running(facts);
        }
        this.heard();
      }
      await pause(this.pace);
    }
  }
}

module.exports = { Told };

if (require.main === module) {
  const freezing = async () => {
    // Here an app would finish what must not be torn, drop caches, and close connections.
    await pause(300);
    console.log('quiet');
  };
  const running = (facts) => {
    if (facts.resumed) {
      // Here it would renew credentials and connect again. What has to be unique it would read from /dev/urandom: the
      // generators in this process, also those of crypto, go on as before, in each clone alike.
      const whose = facts.clone ? 'a clone' : 'the same job';
      console.log(`resumed generation ${facts.generation} on ${facts.host} as ${whose}`);
    } else {
      console.log('thawed');
    }
  };
  new Told(freezing, running);
  console.log('ready');
}
