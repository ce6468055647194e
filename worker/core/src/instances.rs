//! What the processors of EC2's instance types can do, by the family in a type's name.
//!
//! EC2 tells the architecture, maker and clock of a type, not its instruction sets, so this is a list, from what AWS says of
//! each family. A family that is not in it has no level: then nothing is said of a fleet that has it. One that is wrong
//! does no harm to a job: what a snapshot demands is compared with the host that is there.

use crate::cpu::{Fleet, Level};

/// What machines of a family have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    X86 {
        level: Level,
        /// What some of them lack, and no baseline holds back.
        lacks: &'static [&'static str],
    },
    /// It has no levels.
    Arm,
}

const fn all_of(level: Level) -> Processor {
    Processor::X86 { level, lacks: &[] }
}

const FAMILIES: &[(Processor, &[&str])] = &[
    // Sandy Bridge and Ivy Bridge.
    (
        Processor::X86 {
            level: Level::V2,
            lacks: &["adx", "rdrand", "rdseed"],
        },
        &["c3", "g2", "i2", "m3", "r3"],
    ),
    // Haswell, some of them Broadwell.
    (
        Processor::X86 {
            level: Level::V3,
            lacks: &["adx", "rdseed"],
        },
        &["c4", "d2", "m4", "t2", "x1", "x1e"],
    ),
    // Broadwell.
    (
        all_of(Level::V3),
        &["f1", "g3", "g3s", "h1", "i3", "p2", "p3", "r4"],
    ),
    // EPYC before its fourth generation: Naples, Rome, Milan.
    (
        all_of(Level::V3),
        &[
            "c5a", "c5ad", "c6a", "g4ad", "g5", "g6", "g6e", "gr6", "hpc6a", "inf2", "m5a", "m5ad",
            "m6a", "p5", "r5a", "r5ad", "r6a", "t3a",
        ],
    ),
    // EPYC from its fourth generation on: Genoa, Turin.
    (
        all_of(Level::V4),
        &["c7a", "c8a", "hpc7a", "m7a", "m8a", "r7a", "r8a"],
    ),
    // Xeon from Skylake on.
    (
        all_of(Level::V4),
        &[
            "c5", "c5d", "c5n", "c6i", "c6id", "c6in", "c7i", "c7i-flex", "c8i", "c8i-flex", "d3",
            "d3en", "dl1", "g4dn", "hpc6id", "i3en", "i4i", "i7i", "i7ie", "inf1", "m5", "m5d",
            "m5dn", "m5n", "m5zn", "m6i", "m6id", "m6idn", "m6in", "m7i", "m7i-flex", "m8i",
            "m8i-flex", "p3dn", "p4d", "p4de", "p5en", "r5", "r5b", "r5d", "r5dn", "r5n", "r6i",
            "r6id", "r6idn", "r6in", "r7i", "r7iz", "r8i", "r8i-flex", "t3", "trn1", "trn1n",
            "vt1", "x2idn", "x2iedn", "x2iezn", "z1d",
        ],
    ),
    (
        Processor::Arm,
        &[
            "a1", "c6g", "c6gd", "c6gn", "c7g", "c7gd", "c7gn", "c8g", "c8gd", "c8gn", "g5g",
            "hpc7g", "i4g", "i8g", "i8ge", "im4gn", "is4gen", "m6g", "m6gd", "m7g", "m7gd", "m8g",
            "m8gd", "r6g", "r6gd", "r7g", "r7gd", "r8g", "r8gd", "t4g", "x2gd", "x8g",
        ],
    ),
];

/// What a machine of this type has; none if its family is not known.
pub fn processor(instance_type: &str) -> Option<Processor> {
    let (family, _) = instance_type.split_once('.')?;
    let known = FAMILIES.iter();
    let mut known = known.filter(|(_, families)| families.contains(&family));
    known.next().map(|(processor, _)| *processor)
}

/// What all machines of these types have.
///
/// # Errors
/// Why that cannot be said.
pub fn common<'t>(types: impl IntoIterator<Item = &'t str>) -> Result<Fleet, String> {
    let mut common: Option<Fleet> = None;
    let (mut unknown, mut arm) = (Vec::new(), Vec::new());
    for instance_type in types {
        let (level, lacks) = match processor(instance_type) {
            None => {
                unknown.push(instance_type);
                continue;
            }
            Some(Processor::Arm) => {
                arm.push(instance_type);
                continue;
            }
            Some(Processor::X86 { level, lacks }) => (level, lacks),
        };
        let common = common.get_or_insert(Fleet {
            level,
            lacking: Vec::new(),
        });
        common.level = common.level.min(level);
        common.lacking.extend(lacks);
    }
    if !unknown.is_empty() {
        return Err(format!(
            "it is not known what {} can do",
            unknown.join(", ")
        ));
    }
    if !arm.is_empty() {
        return Err(format!("{} have no levels of x86-64", arm.join(", ")));
    }
    let mut common = common.ok_or("no instance type is named")?;
    common.lacking.sort_unstable();
    common.lacking.dedup();
    Ok(common)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_type_has_what_its_family_has_and_an_unknown_one_nothing() {
        for (instance_type, level) in [
            ("m7i-flex.large", Level::V4),
            ("m5.24xlarge", Level::V4),
            ("t3.nano", Level::V4),
            ("m7a.medium", Level::V4),
            ("m6a.large", Level::V3),
            ("m5a.large", Level::V3),
            ("c4.8xlarge", Level::V3),
            ("r4.large", Level::V3),
            ("g5.xlarge", Level::V3),
            ("r3.large", Level::V2),
        ] {
            let known = processor(instance_type);
            assert!(
                matches!(known, Some(Processor::X86 { level: found, .. }) if found == level),
                "{instance_type}: {known:?}"
            );
        }
        assert_eq!(processor("m8g.large"), Some(Processor::Arm));
        for instance_type in ["m99i.large", "m5", "", ".large", "m5x.large", "M5.large"] {
            assert_eq!(processor(instance_type), None, "{instance_type}");
        }
        let all: Vec<&str> = FAMILIES
            .iter()
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        let different: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(all.len(), different.len(), "a family is named twice");
    }

    #[test]
    fn a_fleet_has_what_all_of_its_types_have_or_nothing_is_said_of_it() {
        let fleet = common(["m7i.large", "m6a.large", "m5.large"]).expect("all are known");
        assert_eq!((fleet.level, fleet.lacking), (Level::V3, vec![]));
        let fleet = common(["m5.large", "c4.large", "r3.large"]).expect("all are known");
        assert_eq!(
            (fleet.level, fleet.lacking),
            (Level::V2, vec!["adx", "rdrand", "rdseed"])
        );
        for (types, reason) in [
            (&[][..], "no instance type is named"),
            (
                &["m5.large", "m99.large", "q1.large"],
                "it is not known what m99.large, q1.large can do",
            ),
            (
                &["m5.large", "m6g.large"],
                "m6g.large have no levels of x86-64",
            ),
        ] {
            let said = common(types.iter().copied());
            assert_eq!(said.map(|fleet| fleet.level), Err(reason.to_owned()));
        }
    }
}
