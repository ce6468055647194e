"""Hears of freezes and resumes from tell-app. Copy it into your program; README.md says what is in the files."""

import os
import threading
import time


class Told:
    """Calls `freezing(facts)` before a freeze, which is waited for, and `running(facts)` after it.

    To the facts come `resumed`, whether this is after a resume, and `clone`, whether the job has another name than when it
    was frozen. Both are called on a thread of their own.
    """

    def __init__(self, freezing, running, directory=None, pace=0.05):
        self.directory = directory or os.environ["TELL_APP_DIR"]
        self.freezing, self.running, self.pace = freezing, running, pace
        self.frozen_as = None
        os.makedirs(self.directory, exist_ok=True)
        self.known = self.read().get("id", "")
        self.heard(self.known)
        threading.Thread(target=self.listen, daemon=True).start()

    def read(self):
        try:
            with open(os.path.join(self.directory, "state")) as state:
                return dict(line.rstrip("\n").split("=", 1) for line in state)
        # Another host, before anything was told there.
        except FileNotFoundError:
            return {}

    def heard(self, name):
        os.makedirs(self.directory, exist_ok=True)
        path = os.path.join(self.directory, "heard")
        with open(path + ".new", "w") as file:
            file.write(name)
        os.rename(path + ".new", path)

    def listen(self):
        while True:
            facts = self.read()
            if facts and facts["id"] != self.known:
                self.known = facts["id"]
                if facts["moment"] == "before-freeze":
                    self.frozen_as = facts["job"]
                    self.freezing(facts)
                else:
                    facts["resumed"] = facts["moment"] == "after-resume"
                    facts["clone"] = self.frozen_as not in (None, facts["job"])
                    self.running(facts)
                self.heard(self.known)
            time.sleep(self.pace)


if __name__ == "__main__":

    def freezing(facts):
        # Here an app would finish what must not be torn, drop caches, and close connections.
        time.sleep(0.3)
        print("quiet", flush=True)

    def running(facts):
        if facts["resumed"]:
            # Here it would seed its randomness anew, renew credentials, and connect again.
            whose = "a clone" if facts["clone"] else "the same job"
            print("resumed generation", facts["generation"], "on", facts["host"], "as", whose, flush=True)
        else:
            print("thawed", flush=True)

    Told(freezing, running)
    print("ready", flush=True)
    threading.Event().wait()
