//! What a processor can do, in names: instruction sets with the CPUID bit that says so, the levels that they add up to, and
//! what a job is told at its start that is to run on a lower level than that of its host.
//!
//! What the switches of a baseline do not reach is still demanded of the next host: only what they hold back is not.

use std::fmt;

/// Where CPUID says that an instruction set is there: leaf, subleaf, register (0: EAX to 3: EDX) and bit. By its name in
/// `/proc/cpuinfo`.
const BITS: &[(&str, Bit)] = &[
    ("pclmulqdq", at(1, 0, 2, 1)),
    ("ssse3", at(1, 0, 2, 9)),
    ("fma", at(1, 0, 2, 12)),
    ("cx16", at(1, 0, 2, 13)),
    ("sse4_1", at(1, 0, 2, 19)),
    ("sse4_2", at(1, 0, 2, 20)),
    ("movbe", at(1, 0, 2, 22)),
    ("popcnt", at(1, 0, 2, 23)),
    ("aes", at(1, 0, 2, 25)),
    ("xsave", at(1, 0, 2, 26)),
    ("avx", at(1, 0, 2, 28)),
    ("f16c", at(1, 0, 2, 29)),
    ("rdrand", at(1, 0, 2, 30)),
    ("mmx", at(1, 0, 3, 23)),
    ("sse", at(1, 0, 3, 25)),
    ("sse2", at(1, 0, 3, 26)),
    ("fsgsbase", at(7, 0, 1, 0)),
    ("bmi1", at(7, 0, 1, 3)),
    ("avx2", at(7, 0, 1, 5)),
    ("bmi2", at(7, 0, 1, 8)),
    ("rtm", at(7, 0, 1, 11)),
    ("avx512f", at(7, 0, 1, 16)),
    ("avx512dq", at(7, 0, 1, 17)),
    ("rdseed", at(7, 0, 1, 18)),
    ("adx", at(7, 0, 1, 19)),
    ("avx512ifma", at(7, 0, 1, 21)),
    ("clflushopt", at(7, 0, 1, 23)),
    ("clwb", at(7, 0, 1, 24)),
    ("avx512pf", at(7, 0, 1, 26)),
    ("avx512er", at(7, 0, 1, 27)),
    ("avx512cd", at(7, 0, 1, 28)),
    ("sha_ni", at(7, 0, 1, 29)),
    ("avx512bw", at(7, 0, 1, 30)),
    ("avx512vl", at(7, 0, 1, 31)),
    ("avx512vbmi", at(7, 0, 2, 1)),
    ("waitpkg", at(7, 0, 2, 5)),
    ("avx512_vbmi2", at(7, 0, 2, 6)),
    ("gfni", at(7, 0, 2, 8)),
    ("vaes", at(7, 0, 2, 9)),
    ("vpclmulqdq", at(7, 0, 2, 10)),
    ("avx512_vnni", at(7, 0, 2, 11)),
    ("avx512_bitalg", at(7, 0, 2, 12)),
    ("avx512_vpopcntdq", at(7, 0, 2, 14)),
    ("rdpid", at(7, 0, 2, 22)),
    ("movdiri", at(7, 0, 2, 27)),
    ("movdir64b", at(7, 0, 2, 28)),
    ("avx512_vp2intersect", at(7, 0, 3, 8)),
    ("serialize", at(7, 0, 3, 14)),
    ("amx_bf16", at(7, 0, 3, 22)),
    ("avx512_fp16", at(7, 0, 3, 23)),
    ("amx_tile", at(7, 0, 3, 24)),
    ("amx_int8", at(7, 0, 3, 25)),
    ("avx_vnni", at(7, 1, 0, 4)),
    ("avx512_bf16", at(7, 1, 0, 5)),
    ("xsaveopt", at(0xd, 1, 0, 0)),
    ("xsavec", at(0xd, 1, 0, 1)),
    ("lahf_lm", at(0x8000_0001, 0, 2, 0)),
    ("abm", at(0x8000_0001, 0, 2, 5)),
    ("sse4a", at(0x8000_0001, 0, 2, 6)),
    ("xop", at(0x8000_0001, 0, 2, 11)),
    ("fma4", at(0x8000_0001, 0, 2, 16)),
    ("tbm", at(0x8000_0001, 0, 2, 21)),
];

/// The leaves and subleaves that a snapshot records.
pub const LEAVES: [(u32, u32); 6] = [(1, 0), (7, 0), (7, 1), (0xd, 0), (0xd, 1), (0x8000_0001, 0)];

/// What CPUID answers to a leaf and subleaf: EAX, EBX, ECX, EDX.
pub type Registers = [u32; 4];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bit {
    leaf: u32,
    subleaf: u32,
    register: usize,
    bit: u32,
}

const fn at(leaf: u32, subleaf: u32, register: usize, bit: u32) -> Bit {
    Bit {
        leaf,
        subleaf,
        register,
        bit,
    }
}

impl fmt::Display for Bit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let register = ["EAX", "EBX", "ECX", "EDX"][self.register];
        write!(
            out,
            "CPUID {:x}.{} {register} bit {}",
            self.leaf, self.subleaf, self.bit
        )
    }
}

/// What CPUID says of an instruction set; None if it is not known where it would.
pub fn says(feature: &str, cpuid: impl Fn(u32, u32) -> Option<Registers>) -> Option<bool> {
    let (_, bit) = BITS.iter().find(|(name, _)| *name == feature)?;
    let registers = cpuid(bit.leaf, bit.subleaf)?;
    Some(registers[bit.register] >> bit.bit & 1 == 1)
}

/// `avx2 (CPUID 7.0 EBX bit 5)`
pub fn described(feature: &str) -> String {
    match BITS.iter().find(|(name, _)| *name == feature) {
        Some((name, bit)) => format!("{name} ({bit})"),
        None => feature.to_owned(),
    }
}

/// Levels of x86-64, as the psABI defines them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    V1,
    V2,
    V3,
    V4,
}

/// What each level has over the one before, by names of `/proc/cpuinfo`.
const OVER: [(Level, &[&str]); 4] = [
    (Level::V1, &["mmx", "sse", "sse2"]),
    (
        Level::V2,
        &["cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"],
    ),
    (
        Level::V3,
        &[
            "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave",
        ],
    ),
    (
        Level::V4,
        &["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"],
    ),
];

/// Of no level, widely used, and reached by no switch: demanded all the same.
const UNREACHED: [&str; 5] = ["adx", "aes", "pclmulqdq", "rdrand", "rdseed"];

impl Level {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "x86-64-v1",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }

    pub fn from_text(text: &str) -> Option<Self> {
        let all = OVER.iter().map(|(level, _)| *level);
        all.into_iter().find(|level| level.as_str() == text)
    }

    /// The highest level all of which is there; None on other architectures.
    pub fn of(features: &[String]) -> Option<Self> {
        let has = |name: &&str| features.iter().any(|feature| feature == name);
        let whole = OVER.iter().take_while(|(_, names)| names.iter().all(has));
        whole.map(|(level, _)| *level).last()
    }

    /// Whether a job that is held to this level is taken to do without this instruction set.
    pub fn holds_back(self, feature: &str) -> bool {
        let is_of_it =
            |(level, names): &(Level, &[&str])| *level <= self && names.contains(&feature);
        !OVER.iter().any(is_of_it) && !UNREACHED.contains(&feature)
    }
}

/// What the machines of a fleet have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    pub level: Level,
    /// What some of them lack, and no baseline holds back: a snapshot demands it if its own host has it.
    pub lacking: Vec<&'static str>,
}

/// Reads a fleet from a text with a line for each kind of machine: its name and a colon if wanted, and a level or instruction
/// sets as `/proc/cpuinfo` names them. `#` begins a comment.
///
/// # Errors
/// What is wrong, with the number of the line.
pub fn fleet(text: &str) -> Result<Fleet, String> {
    let mut common: Option<Fleet> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        let has = line.split_once(':').map_or(line, |(_, has)| has);
        let words: Vec<String> = has.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            match line.trim() {
                "" => continue,
                name => return Err(format!("line {number}: nothing is said of {name}")),
            }
        }
        let named = match words.as_slice() {
            [word] => Level::from_text(word),
            _ => None,
        };
        let level = named.or_else(|| Level::of(&words));
        let level = level.filter(|level| *level > Level::V1).ok_or_else(|| {
            format!("line {number}: this is neither a level from x86-64-v2 on nor the instruction sets of one")
        })?;
        let common = common.get_or_insert(Fleet {
            level,
            lacking: Vec::new(),
        });
        common.level = common.level.min(level);
        if named.is_none() {
            let lacks = |name: &&str| !words.iter().any(|word| word == name);
            common.lacking.extend(UNREACHED.into_iter().filter(lacks));
        }
    }
    let mut common = common.ok_or("no machine is named")?;
    common.lacking.sort_unstable();
    common.lacking.dedup();
    Ok(common)
}

/// What is held back, as each of those who are told calls it.
struct Told {
    /// glibc's manual, "Hardware Capability Tunables"; names that a version does not know it ignores.
    glibc: &'static str,
    openblas: &'static str,
    mkl: &'static str,
    numpy: &'static str,
    jvm: &'static str,
    /// OPENSSL_ia32cap(3): bits of CPUID 1 and 7.
    openssl: &'static str,
    go: &'static str,
}

const V4: Told = Told {
    glibc: "",
    openblas: "SkylakeX",
    mkl: "AVX512",
    numpy: "AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    jvm: "-XX:UseAVX=3 -XX:-UseSHA",
    openssl: ":~0x5f4220200000",
    go: "cpu.sha=off",
};

const V3: Told = Told {
    glibc: "-AVX512F,-AVX512CD,-AVX512ER,-AVX512PF,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512_4VNNIW,-AVX512_4FMAPS,-AVX512_VBMI,\
            -AVX512_VBMI2,-AVX512_VNNI,-AVX512_BITALG,-AVX512_IFMA,-AVX512_VPOPCNTDQ,-XSAVEC,-RTM",
    openblas: "Haswell",
    mkl: "AVX2",
    numpy: "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    jvm: "-XX:UseAVX=2 -XX:-UseSHA",
    openssl: ":~0x5f42f0230000",
    go: "cpu.avx512f=off,cpu.avx512bw=off,cpu.avx512vl=off,cpu.sha=off",
};

/// AVX_Fast_Unaligned_Load is a preference that outlives -AVX, and then chooses a memcpy that needs it.
const V2: Told = Told {
    glibc: "-AVX512F,-AVX512CD,-AVX512ER,-AVX512PF,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512_4VNNIW,-AVX512_4FMAPS,-AVX512_VBMI,\
            -AVX512_VBMI2,-AVX512_VNNI,-AVX512_BITALG,-AVX512_IFMA,-AVX512_VPOPCNTDQ,-XSAVEC,-RTM,-AVX,-AVX2,-FMA,-FMA4,-BMI1,-BMI2,\
            -LZCNT,-MOVBE,-F16C,-XSAVE,-AVX_Fast_Unaligned_Load",
    openblas: "Nehalem",
    mkl: "SSE4_2",
    numpy: "F16C FMA3 FMA4 XOP AVX AVX2 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    jvm: "-XX:UseAVX=0 -XX:-UseSHA",
    openssl: "~0x1040100000000000:~0x5f42f0230128",
    go: "cpu.avx512f=off,cpu.avx512bw=off,cpu.avx512vl=off,cpu.sha=off,cpu.avx=off,cpu.avx2=off,cpu.fma=off,cpu.bmi1=off,\
         cpu.bmi2=off",
};

/// Variables of the environment that hold a job to a level, and what stands between what is there and what is added; none:
/// it counts only where there is nothing.
pub fn held_to(level: Level) -> Vec<(&'static str, String, Option<&'static str>)> {
    let told = match level {
        Level::V4 => V4,
        Level::V3 => V3,
        Level::V1 | Level::V2 => V2,
    };
    let plain = |name, value: &str, between| (name, value.to_owned(), between);
    let mut all = vec![
        plain("OPENBLAS_CORETYPE", told.openblas, None),
        plain("MKL_ENABLE_INSTRUCTIONS", told.mkl, None),
        plain("NPY_DISABLE_CPU_FEATURES", told.numpy, None),
        plain("JAVA_TOOL_OPTIONS", told.jvm, Some(" ")),
        plain("OPENSSL_ia32cap", told.openssl, None),
        plain("GODEBUG", told.go, Some(",")),
    ];
    if !told.glibc.is_empty() {
        let tunable = format!("glibc.cpu.hwcaps={}", told.glibc);
        all.push(("GLIBC_TUNABLES", tunable, Some(":")));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_what_all_of_its_machines_have() {
        let v2 = "mmx sse sse2 cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3";
        let v3 = format!("{v2} abm avx avx2 bmi1 bmi2 f16c fma movbe xsave");
        let text = format!(
            "# the fleet of the night\nm7i.large: x86-64-v4\n\nflags : {v3} aes # an old one\nx86-64-v3\n"
        );
        let read = fleet(&text).expect("it is well formed");
        assert_eq!(read.level, Level::V3);
        assert_eq!(read.lacking, ["adx", "pclmulqdq", "rdrand", "rdseed"]);
        assert_eq!(fleet(v2).map(|fleet| fleet.level), Ok(Level::V2));
        assert_eq!(fleet("x86-64-v2").map(|fleet| fleet.lacking), Ok(vec![]));
        for (text, wrong) in [
            ("", "no machine is named"),
            ("# nothing\n", "no machine is named"),
            ("a: x86-64-v3\nb:\n", "line 2: nothing is said of b"),
            ("x86-64-v5", "line 1: this is neither a level"),
            ("x86-64-v1", "line 1: this is neither a level"),
            ("a: mmx sse sse2", "line 1: this is neither a level"),
        ] {
            let said = fleet(text).expect_err(text);
            assert!(said.starts_with(wrong), "{text}: {said}");
        }
    }

    fn features(level: Level) -> Vec<String> {
        let below = OVER.iter().filter(|(one, _)| *one <= level);
        below
            .flat_map(|(_, names)| names.iter().map(|name| (*name).to_owned()))
            .collect()
    }

    #[test]
    fn a_level_is_there_when_all_of_it_is() {
        for (level, _) in OVER {
            let mut has = features(level);
            assert_eq!(Level::of(&has), Some(level));
            assert_eq!(Level::from_text(level.as_str()), Some(level));
            has.pop();
            assert!(Level::of(&has) < Some(level));
        }
        assert_eq!(Level::of(&["asimd".to_owned()]), None);
    }

    #[test]
    fn a_baseline_demands_its_level_and_what_no_switch_reaches() {
        let mut has = features(Level::V4);
        has.extend(
            ["aes", "sha_ni", "vaes", "avx512_vnni", "xsavec", "amx_tile"].map(str::to_owned),
        );
        let demanded = |level: Level| -> Vec<String> {
            has.iter()
                .filter(|name| !level.holds_back(name))
                .cloned()
                .collect()
        };
        for level in [Level::V2, Level::V3] {
            let mut expected = features(level);
            expected.push("aes".to_owned());
            let mut found = demanded(level);
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{level:?}");
        }
        assert_eq!(demanded(Level::V4).len(), features(Level::V4).len() + 1);
    }

    #[test]
    fn cpuid_is_read_by_name() {
        let cpuid = |leaf, subleaf| (leaf == 7 && subleaf == 0).then_some([0, 1 << 5, 0, 0]);
        assert_eq!(says("avx2", cpuid), Some(true));
        assert_eq!(says("bmi1", cpuid), Some(false));
        assert_eq!(says("avx", cpuid), None);
        assert_eq!(says("mmxext", cpuid), None);
        assert_eq!(described("avx2"), "avx2 (CPUID 7.0 EBX bit 5)");
        assert_eq!(described("mmxext"), "mmxext");
        assert!(
            BITS.iter()
                .all(|(_, bit)| LEAVES.contains(&(bit.leaf, bit.subleaf)))
        );
    }
}
