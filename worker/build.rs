//! Builds the small libraries that the app and CRIU can be given to load first (`preload/`), which this program carries with it.
//!
//! With the compiler that links Rust programs: `CC`, else `cc`. For another machine than this one it has to be one for that
//! machine; a check that only compiles does without, and then the program has none to give.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Each with its source, and what is defined for it.
const LIBRARIES: [(&str, &str, &[&str]); 5] = [
    ("no_io_uring", "no_io_uring", &[]),
    ("limits", "limits", &[]),
    ("adopts", "adopts", &[]),
    ("clocks", "clocks", &[]),
    ("clocks_no_io_uring", "clocks", &["-DDENY_IO_URING"]),
];

/// Small, without what differs from build to build, and without anything of a C library.
const FLAGS: [&str; 11] = [
    "-std=gnu11",
    "-O2",
    "-shared",
    "-fPIC",
    "-nostdlib",
    "-fno-stack-protector",
    "-Wl,-z,noseparate-code",
    "-Wl,--build-id=none",
    "-Wl,--hash-style=both",
    "-s",
    "-o",
];

fn main() {
    println!("cargo::rerun-if-changed=preload");
    println!("cargo::rerun-if-env-changed=CC");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let target = variable("TARGET");
    let is_foreign = target != variable("HOST");
    let compiler = match (env::var("CC"), is_foreign) {
        (Ok(compiler), _) => compiler,
        (Err(_), false) => "cc".to_owned(),
        (Err(_), true) => format!(
            "{}-linux-{}-gcc",
            variable("CARGO_CFG_TARGET_ARCH"),
            variable("CARGO_CFG_TARGET_ENV")
        ),
    };
    // Atomics without a call to the compiler's own library.
    let inline: &[&str] = match variable("CARGO_CFG_TARGET_ARCH").as_str() {
        "aarch64" => &["-mno-outline-atomics"],
        _ => &[],
    };
    for (name, source, defined) in LIBRARIES {
        let source = format!("preload/{source}.c");
        let library = PathBuf::from(variable("OUT_DIR")).join(format!("{name}.so"));
        let built = Command::new(&compiler)
            .args(inline.iter().chain(defined))
            .args(FLAGS)
            .arg(&library)
            .arg(&source)
            .status();
        match built {
            Ok(status) if status.success() => {}
            _ if is_foreign => {
                println!(
                    "cargo::warning={compiler} cannot build {source} for {target}; this program has none to give"
                );
                std::fs::write(&library, []).expect("OUT_DIR can be written");
            }
            other => panic!("{compiler} cannot build {source}: {other:?}"),
        }
    }
}
