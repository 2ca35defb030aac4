//! `NVIDIA_REQUIRE_*`: parsed and evaluated for each GPU.
//!
//! The language is libnvidia-container's (`src/cli/dsl.c`): conditions `property op value`, a comma
//! between them is AND, a blank is OR and binds less. Properties are cuda, driver, arch (versions) and
//! brand (a word, only `=` and `!=`); their names and a brand's case don't matter.
//!
//! Where gpucell is stricter: an unknown property or operator is an error at once, and a condition whose
//! property isn't known never counts as met. It must not find facts: the caller brings them.

use std::cmp::Ordering;
use std::fmt;

use crate::{Error, Result};

/// A version of dotted numbers. Trailing zeros make no difference: 12 = 12.0.
#[derive(Clone, Debug)]
pub struct Version {
    text: String,
    /// Without trailing zeros, so that the derived order of lists is the versions'.
    numbers: Vec<u64>,
}

impl Version {
    /// Reads `550.163.01`.
    ///
    /// # Errors
    /// Anything but numbers (below 2^64) with single dots between them.
    pub fn parse(text: &str) -> Result<Self> {
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse().ok())?
        };
        let mut numbers: Vec<u64> = text
            .split('.')
            .map(number)
            .collect::<Option<_>>()
            .ok_or_else(|| Error::msg(format!("{text:?} is not a version of dotted numbers")))?;
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        Ok(Version {
            text: text.to_string(),
            numbers,
        })
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.numbers == other.numbers
    }
}

impl Eq for Version {}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers)
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// As it was written.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is known of one GPU and the driver.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// How errors call the GPU: `GPU 0 (GPU-…)`.
    pub label: &'a str,
    /// The newest CUDA version the driver supports.
    pub cuda: Option<&'a Version>,
    /// The driver's version.
    pub driver: &'a Version,
    /// Compute capability, as 9.0.
    pub arch: Option<&'a Version>,
    /// NVML's brand in lower case: tesla, geforce, nvidia…
    pub brand: Option<&'a str>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Property {
    Cuda,
    Driver,
    Arch,
    Brand,
}

impl Property {
    const ALL: [Property; 4] = [Self::Cuda, Self::Driver, Self::Arch, Self::Brand];

    fn name(self) -> &'static str {
        match self {
            Property::Cuda => "cuda",
            Property::Driver => "driver",
            Property::Arch => "arch",
            Property::Brand => "brand",
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl Operator {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "=" => Operator::Equal,
            "!=" => Operator::NotEqual,
            "<" => Operator::Less,
            "<=" => Operator::LessEqual,
            ">" => Operator::Greater,
            ">=" => Operator::GreaterEqual,
            _ => return None,
        })
    }

    fn holds(self, order: Ordering) -> bool {
        match self {
            Operator::Equal => order.is_eq(),
            Operator::NotEqual => order.is_ne(),
            Operator::Less => order.is_lt(),
            Operator::LessEqual => order.is_le(),
            Operator::Greater => order.is_gt(),
            Operator::GreaterEqual => order.is_ge(),
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Value {
    Version(Version),
    Word(String),
}

/// `cuda>=12.4`.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Condition {
    text: String,
    property: Property,
    operator: Operator,
    value: Value,
}

/// The value of one variable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Requirement {
    /// Where it came from: the variable's name.
    from: String,
    /// One of these must hold; in one, every condition. Empty: nothing is required.
    alternatives: Vec<Vec<Condition>>,
}

impl Requirement {
    /// Reads a variable's value; `from` is its name, for errors. A value of blanks and commas requires
    /// nothing.
    ///
    /// # Errors
    /// A condition that isn't `property op value`, with an unknown property or operator, a version that
    /// isn't one, or an order between brands.
    pub fn parse(from: &str, text: &str) -> Result<Self> {
        let mut alternatives = Vec::new();
        for alternative in text.split_ascii_whitespace() {
            let conditions = alternative
                .split(',')
                .filter(|condition| !condition.is_empty())
                .map(|condition| {
                    Condition::parse(condition).map_err(|why| {
                        Error::msg(format!(
                            "{}: invalid expression {condition:?}: {why}",
                            from.escape_debug()
                        ))
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            if !conditions.is_empty() {
                alternatives.push(conditions);
            }
        }
        Ok(Requirement {
            from: from.escape_debug().to_string(),
            alternatives,
        })
    }
}

/// Whether one of them is about a GPU itself: its architecture or brand, which procfs doesn't tell.
pub fn about_gpus(requirements: &[Requirement]) -> bool {
    let all = requirements.iter().flat_map(|r| r.alternatives.iter());
    let about = |c: &Condition| matches!(c.property, Property::Arch | Property::Brand);
    all.flatten().any(about)
}

/// The variable and what it requires: `NVIDIA_REQUIRE_CUDA: cuda>=12.4 brand=tesla,driver>=470`.
impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.from)?;
        for alternative in &self.alternatives {
            let conditions: Vec<&str> = alternative.iter().map(|c| c.text.as_str()).collect();
            write!(f, " {}", conditions.join(","))?;
        }
        Ok(())
    }
}

impl Condition {
    fn parse(text: &str) -> Result<Self, String> {
        const SIGNS: [char; 4] = ['<', '>', '=', '!'];
        let at = text
            .find(SIGNS)
            .ok_or("no comparison (=, !=, <, <=, >, >=)")?;
        let (name, rest) = text.split_at(at);
        let value = rest.trim_start_matches(SIGNS);
        let sign = &rest[..rest.len() - value.len()];
        let property = Property::ALL
            .into_iter()
            .find(|p| p.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| format!("unknown property {name:?} (cuda, driver, arch, brand)"))?;
        let operator =
            Operator::parse(sign).ok_or_else(|| format!("unknown comparison {sign:?}"))?;
        let value = match property {
            Property::Brand => {
                if !matches!(operator, Operator::Equal | Operator::NotEqual) {
                    return Err("brands have no order: only = and !=".into());
                }
                if value.is_empty() {
                    return Err("no value".into());
                }
                Value::Word(value.to_string())
            }
            _ => Value::Version(Version::parse(value).map_err(|e| e.to_string())?),
        };
        Ok(Condition {
            // The text is an image's and goes into messages.
            text: text.escape_debug().to_string(),
            property,
            operator,
            value,
        })
    }
}

/// Whom a requirement is held against.
#[derive(Clone, Copy)]
struct Subject<'a> {
    label: &'a str,
    cuda: Option<&'a Version>,
    driver: &'a Version,
    /// `None`: no GPU is visible, so that any condition on one holds (as in libnvidia-container).
    gpu: Option<(Option<&'a Version>, Option<&'a str>)>,
}

/// What became of a condition.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Outcome {
    Met,
    /// Not met; with what the host has.
    Failed(String),
    /// The property isn't known.
    Unknown,
}

impl Condition {
    fn evaluate(&self, on: &Subject) -> Outcome {
        let version = match self.property {
            Property::Cuda => on.cuda,
            Property::Driver => Some(on.driver),
            Property::Arch => match on.gpu {
                None => return Outcome::Met,
                Some((arch, _)) => arch,
            },
            Property::Brand => match on.gpu {
                None => return Outcome::Met,
                Some((_, brand)) => return self.evaluate_brand(brand),
            },
        };
        match (version, &self.value) {
            (Some(has), Value::Version(asked)) if self.operator.holds(has.cmp(asked)) => {
                Outcome::Met
            }
            (Some(has), _) => Outcome::Failed(has.to_string()),
            (None, _) => Outcome::Unknown,
        }
    }

    fn evaluate_brand(&self, brand: Option<&str>) -> Outcome {
        match (brand, &self.value) {
            (Some(has), Value::Word(asked))
                if has.eq_ignore_ascii_case(asked) == (self.operator == Operator::Equal) =>
            {
                Outcome::Met
            }
            (Some(has), _) => Outcome::Failed(has.to_string()),
            (None, _) => Outcome::Unknown,
        }
    }
}

impl Requirement {
    /// Three-valued: an alternative with a failed condition has failed, whatever isn't known of the
    /// others; one that may yet hold makes an error that names what isn't known.
    fn check(&self, on: &Subject) -> Result<()> {
        let mut failed = None;
        let mut unknown = None;
        for alternative in &self.alternatives {
            let mut open = None;
            let mut lost = None;
            for condition in alternative {
                match condition.evaluate(on) {
                    Outcome::Met => {}
                    Outcome::Failed(has) => {
                        lost = Some((condition, has));
                        break;
                    }
                    Outcome::Unknown => open = open.or(Some(condition)),
                }
            }
            match (lost, open) {
                (Some(lost), _) => failed = failed.or(Some(lost)),
                (None, Some(open)) => unknown = unknown.or(Some(open)),
                (None, None) => return Ok(()),
            }
        }
        let mut why = Vec::new();
        if let Some((condition, has)) = &failed {
            why.push(format!(
                "{} is not met: {} is {has}",
                condition.text,
                condition.property.name()
            ));
        }
        if let Some(condition) = unknown {
            why.push(format!(
                "{} can't be decided: {} is not known",
                condition.text,
                condition.property.name()
            ));
        }
        if why.is_empty() {
            return Ok(());
        }
        let more = match self.alternatives.len() - why.len() {
            0 => String::new(),
            1 => " (nor is the other alternative)".into(),
            n => format!(" (nor is any of {n} other alternatives)"),
        };
        let cuda = failed.is_some_and(|(c, _)| c.property == Property::Cuda);
        let advice = if cuda {
            "; update the driver, or use an image for an older CUDA"
        } else {
            ""
        };
        Err(Error::msg(format!(
            "{}: {}: {}{more}{advice}",
            self.from,
            on.label,
            why.join("; ")
        )))
    }
}

/// Holds every requirement against every GPU.
///
/// # Errors
/// The first that isn't met, with the condition, the GPU, what is asked and what is there; one that
/// can't be decided because a property isn't known, with its name; requirements without any GPU (see
/// [`check_driver`]).
pub fn check(requirements: &[Requirement], gpus: &[Facts]) -> Result<()> {
    let first = requirements.iter().find(|r| !r.alternatives.is_empty());
    if gpus.is_empty()
        && let Some(first) = first
    {
        return Err(Error::msg(format!(
            "{}: no GPU to hold it against",
            first.from
        )));
    }
    for facts in gpus {
        let on = Subject {
            label: facts.label,
            cuda: facts.cuda,
            driver: facts.driver,
            gpu: Some((facts.arch, facts.brand)),
        };
        requirements.iter().try_for_each(|r| r.check(&on))?;
    }
    Ok(())
}

/// Holds every requirement against the driver alone, for a cell without a GPU: conditions on a GPU hold.
///
/// # Errors
/// As [`check`].
pub fn check_driver(
    requirements: &[Requirement],
    cuda: Option<&Version>,
    driver: &Version,
) -> Result<()> {
    let on = Subject {
        label: "driver",
        cuda,
        driver,
        gpu: None,
    };
    requirements.iter().try_for_each(|r| r.check(&on))
}
