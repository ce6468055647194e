//! `reprieve completions` and `reprieve manual`: the command line as shells and `man` want it told.

use clap::{Args, ValueEnum};
use clap_complete::Shell;

use super::Invocation;
use crate::failure::{ExitCode, Failure};

/// Print a shell's completions of the command line
///
/// To be put where that shell looks for them.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  reprieve completions bash > /etc/bash_completion.d/reprieve\n  \
                             reprieve completions zsh > /usr/share/zsh/vendor-completions/_reprieve\n  \
                             reprieve completions fish > /etc/fish/completions/reprieve.fish\n"
)]
pub(super) struct Completions {
    #[arg(value_name = "SHELL")]
    shell: Known,
}

/// The shells that we know.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    pub(super) fn invocation(&self) -> Invocation {
        let shell = match self.shell {
            Known::Bash => Shell::Bash,
            Known::Zsh => Shell::Zsh,
            Known::Fish => Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut super::definition(), "reprieve", &mut script);
        Invocation::Print(String::from_utf8_lossy(&script).into_owned())
    }
}

/// Print a page of the manual, for `man -l`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  reprieve manual | man -l -\n  \
                             reprieve manual run > /usr/local/share/man/man1/reprieve-run.1\n")]
pub(super) struct Manual {
    /// The command that the page is about; without it, the page about all of them
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

impl Manual {
    pub(super) fn invocation(self) -> Result<Invocation, Failure> {
        let all = super::definition();
        let page = match self.command {
            None => all,
            Some(name) => {
                let found = all.get_subcommands().find(|one| one.get_name() == name);
                let Some(found) = found else {
                    let failure = Failure::new(
                        ExitCode::SettingsInvalid,
                        format!("there is no command {name}, so there is no page about it"),
                    );
                    return Err(failure.remedy("`reprieve --help` lists the commands"));
                };
                found.clone()
            }
        };
        let mut text = Vec::new();
        let written = clap_mangen::Man::new(page).render(&mut text);
        written.expect("a vector takes whatever is written to it");
        Ok(Invocation::Print(
            String::from_utf8_lossy(&text).into_owned(),
        ))
    }
}
