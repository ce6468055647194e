//! A real browser, headless, with one page at a time.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use super::{LIMIT, project_path, wait_for};

/// Its first start unpacks it.
const START_LIMIT: Duration = Duration::from_secs(300);

/// The browser of `infra/local/browser`. It ends when this is dropped.
pub(crate) struct Browser {
    child: Child,
    input: Option<ChildStdin>,
    messages: Receiver<Value>,
    requests: u64,
    session: Option<String>,
    /// What the page complained of.
    pub(crate) complaints: Vec<String>,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let script = project_path("infra/local/browser");
        let mut child = Command::new(&script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", script.display()));
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in output.split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("it speaks JSON");
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            input: child.stdin.take(),
            child,
            messages,
            requests: 0,
            session: None,
            complaints: Vec::new(),
        };
        let targets = browser.ask_within(START_LIMIT, "Target.getTargets", &json!({}));
        let target = &targets["targetInfos"]
            .as_array()
            .expect("it is a list")
            .iter()
            .find(|target| target["type"] == "page")
            .expect("it begins with a page")["targetId"];
        let session = browser.ask(
            "Target.attachToTarget",
            &json!({ "targetId": target, "flatten": true }),
        );
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.ask(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Calls a method of the DevTools protocol.
    #[track_caller]
    pub(crate) fn ask(&mut self, method: &str, parameters: &Value) -> Value {
        self.ask_within(LIMIT, method, parameters)
    }

    #[track_caller]
    fn ask_within(&mut self, limit: Duration, method: &str, parameters: &Value) -> Value {
        self.requests += 1;
        let mut request = json!({ "id": self.requests, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            request["sessionId"] = session.as_str().into();
        }
        let input = self.input.as_mut().expect("open until the drop");
        let sent = input.write_all(format!("{request}\0").as_bytes());
        sent.unwrap_or_else(|e| panic!("the browser is gone: {e}"));
        loop {
            let message = self.messages.recv_timeout(limit);
            let message = message.unwrap_or_else(|e| panic!("no answer to {method}: {e}"));
            if message["id"] == self.requests {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.listen(&message);
        }
    }

    fn listen(&mut self, message: &Value) {
        let of = &message["params"];
        let complains = match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => of["type"] == "error" || of["type"] == "warning",
            Some("Log.entryAdded") => {
                of["entry"]["level"] == "error" || of["entry"]["level"] == "warning"
            }
            _ => false,
        };
        if complains {
            self.complaints.push(of.to_string());
        }
    }

    #[track_caller]
    pub(crate) fn open(&mut self, url: &str) {
        self.ask("Page.navigate", &json!({ "url": url }));
        self.wait_for_js("document.readyState === 'complete'");
    }

    /// The value of an expression of JavaScript.
    #[track_caller]
    pub(crate) fn js(&mut self, expression: &str) -> Value {
        let parameters =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.ask("Runtime.evaluate", &parameters);
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].clone()
    }

    #[track_caller]
    pub(crate) fn wait_for_js(&mut self, expression: &str) {
        wait_for(LIMIT, expression, || {
            (self.js(expression) == true).then_some(())
        });
    }

    /// As a screen of this many CSS pixels in this colour scheme.
    pub(crate) fn look_like(&mut self, width: u32, height: u32, scheme: &str) {
        let screen = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.ask("Emulation.setDeviceMetricsOverride", &screen);
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.ask("Emulation.setEmulatedMedia", &scheme);
    }

    /// The format follows from the name.
    pub(crate) fn screenshot(&mut self, path: &Path) {
        let format = path.extension().expect("it has one").to_string_lossy();
        let mut parameters = json!({ "format": format, "captureBeyondViewport": true });
        if format == "webp" {
            parameters["quality"] = 70.into();
        }
        let taken = self.ask("Page.captureScreenshot", &parameters);
        let image = taken["data"].as_str().expect("it is text");
        let image = aws_smithy_types::base64::decode(image).expect("it is base64");
        std::fs::create_dir_all(path.parent().expect("it is a file")).expect("target is writable");
        std::fs::write(path, image).expect("target is writable");
    }

    pub(crate) fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": if key == "Tab" { 9 } else { 13 } });
            // Without its text it presses no button.
            if (key, kind) == ("Enter", "keyDown") {
                event["text"] = "\r".into();
            }
            self.ask("Input.dispatchKeyEvent", &event);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends by itself then, and removes its profile.
        drop(self.input.take());
        // Its end is not worth failing a test for.
        let _ = self.child.wait();
    }
}
