//! What a release consists of, made by `infra/packages/dist` and installed in a Debian: the tarball, the package with its
//! systemd unit, the checksums, and the packages of cargo.

mod harness;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use harness::{Docker, project_path};
use reprieve::failure::ExitCode;

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the program can be started");
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&stdout).into_owned()
}

/// The release's files, made from this build's binary without what only debuggers read.
fn dist(directory: &Path) {
    let binary = directory.join("binary");
    let mut strip = Command::new("strip");
    strip
        .arg("-o")
        .arg(&binary)
        .arg(env!("CARGO_BIN_EXE_reprieve"));
    succeed(&mut strip);
    let mut dist = Command::new(project_path("infra/packages/dist"));
    dist.arg(directory)
        .env("REPRIEVE_BINARY", &binary)
        .env("SOURCE_DATE_EPOCH", "1700000000")
        // Packing well takes longer than all the rest.
        .env("DPKG_DEB_COMPRESSOR_TYPE", "none");
    succeed(&mut dist);
    fs::remove_file(binary).expect("it is ours");
}

/// It names what Cargo.lock pins, by checksum, and no place of this machine.
fn bill_of_materials(made: &Path) {
    let name = format!(
        "reprieve-{}-x86_64-linux.cdx.json",
        env!("CARGO_PKG_VERSION")
    );
    let text = fs::read_to_string(made.join(name)).expect("it was made");
    assert!(
        !text.contains(&project_path("").display().to_string()),
        "{text}"
    );
    let bill: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let components = bill["components"].as_array().expect("they are listed");
    let lock = fs::read_to_string(project_path("Cargo.lock")).expect("it is there");
    let mut pinned = 0;
    for component in components {
        let word = |field: &str| component[field].as_str().expect("it has one").to_owned();
        let entry = format!(
            "name = \"{}\"\nversion = \"{}\"\n",
            word("name"),
            word("version")
        );
        let (_, rest) = lock
            .split_once(&entry)
            .unwrap_or_else(|| panic!("{component}"));
        let Some(checksum) = component["hashes"][0]["content"].as_str() else {
            assert!(word("name").starts_with("reprieve"), "{component}");
            continue;
        };
        let (of_this, _) = rest.split_once("[[package]]").unwrap_or((rest, ""));
        assert!(of_this.contains(checksum), "{component}");
        pinned += 1;
    }
    assert!(pinned > 100, "{pinned}");
}

#[test]
fn the_tarball_and_the_package_install_and_run() {
    let made = tempfile::tempdir().expect("a temporary directory can be made");
    dist(made.path());
    let mut check = Command::new("sha256sum");
    check.args(["--check", "--strict", "SHA256SUMS"]);
    let checked = succeed(check.current_dir(made.path()));
    assert_eq!(checked.matches(": OK").count(), 3, "{checked}");
    bill_of_materials(made.path());

    let docker = Docker::engine();
    let version = env!("CARGO_PKG_VERSION");
    let tarball = format!("reprieve-{version}-x86_64-linux.tar.gz");
    let package = format!("reprieve_{version}_amd64.deb");
    let mirror = docker.root("mirror").display().to_string();
    // systemd looks at the unit; apt finds whatever the package depends on.
    let dockerfile = format!(
        "FROM debian:trixie-slim\n\
         RUN echo 'deb {mirror} trixie main' > /etc/apt/sources.list && apt-get -qq update && \
             apt-get -qq -y --no-install-recommends install systemd\n\
         COPY {package} {tarball} /\n\
         RUN apt-get -qq -y --no-install-recommends install /{package} && tar -C /opt -xzf /{tarball}\n"
    );
    let files = [&package, &tarball].map(|name| (name.as_str(), made.path().join(name)));
    docker.build("installed", &dockerfile, &files);
    let run = |script: &str| {
        let options = [
            "run",
            "--rm",
            "--network=none",
            "installed",
            "sh",
            "-ec",
            script,
        ];
        docker.ok(options)
    };
    let both = run(&format!(
        "reprieve version | head -n 1; /opt/reprieve-{version}-x86_64-linux/reprieve version | head -n 1; \
         stat -c '%a %U' /usr/bin/reprieve /etc/reprieve; dpkg-query --listfiles reprieve"
    ));
    let line = format!("reprieve {version}\n");
    assert!(
        both.starts_with(&format!("{line}{line}755 root\n750 root\n")),
        "{both}"
    );
    assert!(
        both.contains("/usr/lib/systemd/system/reprieve@.service"),
        "{both}"
    );

    // Each command has its page, and each shell its completions, in both.
    let commands =
        run("reprieve --help | sed -n '/^Commands:/,/^Options:/s/^  \\([a-z]\\+\\) .*/\\1/p'");
    assert!(commands.lines().count() > 15, "{commands}");
    let unpacked = run(&format!(
        "cd /opt/reprieve-{version}-x86_64-linux && find man completions -type f -size +0"
    ));
    for command in commands.lines().filter(|command| *command != "help") {
        let page = format!("man/man1/reprieve-{command}.1");
        assert!(unpacked.contains(&format!("{page}\n")), "{unpacked}");
        assert!(both.contains(&format!("/usr/share/{page}.gz\n")), "{both}");
    }
    for (inside, outside) in [
        ("man/man1/reprieve.1", "man/man1/reprieve.1.gz"),
        (
            "completions/reprieve",
            "bash-completion/completions/reprieve",
        ),
        ("completions/_reprieve", "zsh/vendor-completions/_reprieve"),
        (
            "completions/reprieve.fish",
            "fish/vendor_completions.d/reprieve.fish",
        ),
    ] {
        assert!(unpacked.contains(&format!("{inside}\n")), "{unpacked}");
        assert!(both.contains(&format!("/usr/share/{outside}\n")), "{both}");
    }
    // They are what they should be to who reads them.
    // (Slim images leave out manuals, so the page is taken from the package.)
    run(&format!(
        "bash -n /usr/share/bash-completion/completions/reprieve; \
         dpkg-deb --fsys-tarfile /{package} | tar -xO ./usr/share/man/man1/reprieve-run.1.gz | zcat | grep '^.TH reprieve-run 1'"
    ));

    // The unit is one that systemd takes without a word; a misspelt key or value would be warned of.
    let verify = docker
        .command([
            "run",
            "--rm",
            "--network=none",
            "installed",
            "systemd-analyze",
            "verify",
            "--man=no",
            "reprieve@job.service",
        ])
        .output()
        .expect("nsenter can be started");
    let said = String::from_utf8_lossy(&verify.stderr);
    let about_ours: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("reprieve"))
        .collect();
    assert!(verify.status.success() && about_ours.is_empty(), "{said}");
    docker.ok(["rmi", "--force", "installed"]);
}

#[test]
fn the_unit_agrees_with_the_program() {
    let unit = fs::read_to_string(project_path("infra/packages/reprieve@.service"))
        .expect("the unit is there");
    let value = |key: &str| {
        let mut found = unit.lines().filter_map(|line| line.strip_prefix(key));
        let value = found
            .next()
            .unwrap_or_else(|| panic!("no {key} in the unit"));
        value.to_owned()
    };
    let number = |code: ExitCode| code.number().to_string();
    assert_eq!(value("SuccessExitStatus="), number(ExitCode::Checkpointed));
    let never = [ExitCode::Fenced, ExitCode::SettingsInvalid].map(number);
    assert_eq!(value("RestartPreventExitStatus="), never.join(" "));
    // Both sides' grace is the same.
    assert_eq!(
        value("TimeoutStopSec="),
        value("Environment=REPRIEVE_TERM_GRACE=")
    );
    // A container with the documented options has the same capabilities.
    let bundle = fs::read_to_string(project_path("tests/harness/bundle.rs")).expect("it is there");
    let words = bundle.split('"').filter(|word| word.starts_with("CAP_"));
    let ours: Vec<&str> = words.collect();
    assert_eq!(value("CapabilityBoundingSet="), ours.join(" "));
}

#[test]
fn the_packages_of_cargo_hold_what_they_need() {
    // Nothing is compiled: the contents are what a release forgets.
    let target = tempfile::tempdir().expect("a temporary directory can be made");
    let mut package = Command::new(env!("CARGO"));
    package
        .args([
            "package",
            "--workspace",
            "--no-verify",
            "--allow-dirty",
            "--offline",
        ])
        .arg("--target-dir")
        .arg(target.path())
        .current_dir(project_path(""));
    succeed(&mut package);
    let version = env!("CARGO_PKG_VERSION");
    for name in ["reprieve", "reprieve-core", "reprieve-hooks"] {
        let file = target
            .path()
            .join(format!("package/{name}-{version}.crate"));
        let listed = succeed(Command::new("tar").arg("-tzf").arg(file));
        let holds = |path: &str| listed.contains(&format!("{name}-{version}/{path}\n"));
        assert!(holds("src/lib.rs") && holds("Cargo.toml"), "{listed}");
        assert!(
            name != "reprieve" || holds("src/main.rs") && holds("Cargo.lock"),
            "{listed}"
        );
    }
}
