//! `NVIDIA_REQUIRE_*` held against hypothetical GPUs, as a table. Pure.
//!
//! A row is: its name; the variable's value; what is known, `property value` each (the driver's version
//! is always known); what comes of it: `met`, or the error without its start `NVIDIA_REQUIRE_X: GPU 0: `.

mod rows;

use gpucell::nvidia::require::{Facts, Requirement, Version, check, check_driver};

type Row = (&'static str, &'static str, &'static str, &'static str);

/// An H100 as the driver describes it.
const H100: &str = "cuda 12.4 driver 550.163.01 arch 9.0 brand nvidia";
/// Without NVML: what procfs tells.
const PROCFS: &str = "cuda 12.4 driver 550.163.01";

/// The requirement of NVIDIA's image cuda:12.4, shortened.
const CUDA_124: &str = "cuda>=12.4 brand=tesla,driver>=470,driver<471 brand=unknown,driver>=470,driver<471 \
                        brand=nvidia,driver>=470,driver<471 brand=tesla,driver>=525,driver<526";

struct Known {
    cuda: Option<Version>,
    driver: Version,
    arch: Option<Version>,
    brand: Option<String>,
}

fn known(text: &str) -> Known {
    let words: Vec<&str> = text.split(' ').collect();
    let of = |name: &str| {
        words
            .chunks(2)
            .find(|pair| pair[0] == name)
            .map(|pair| pair[1])
    };
    let version = |name: &str| of(name).map(|v| Version::parse(v).unwrap());
    Known {
        cuda: version("cuda"),
        driver: version("driver").unwrap(),
        arch: version("arch"),
        brand: of("brand").map(str::to_string),
    }
}

impl Known {
    fn facts<'a>(&'a self, label: &'a str) -> Facts<'a> {
        Facts {
            label,
            cuda: self.cuda.as_ref(),
            driver: &self.driver,
            arch: self.arch.as_ref(),
            brand: self.brand.as_deref(),
        }
    }
}

fn said(expression: &str, facts: &str) -> String {
    let known = known(facts);
    let result = Requirement::parse("NVIDIA_REQUIRE_X", expression)
        .and_then(|requirement| check(&[requirement], &[known.facts("GPU 0")]));
    match result {
        Ok(()) => "met".into(),
        Err(e) => {
            let text = e.to_string();
            let text = text
                .strip_prefix("NVIDIA_REQUIRE_X: ")
                .expect("the variable's name");
            text.strip_prefix("GPU 0: ").unwrap_or(text).to_string()
        }
    }
}

fn rows(rows: &[Row]) {
    let mut wrong = Vec::new();
    for (name, expression, facts, want) in rows {
        let has = said(expression, facts);
        if has != *want {
            wrong.push(format!(
                "{name}\n  {expression:?} of {facts:?}\n  want  {want}\n  has   {has}"
            ));
        }
    }
    rows::none_is(&wrong);
}

#[test]
#[rustfmt::skip] // a row a line
fn comparisons() {
    rows(&[
        ("nothing", "", H100, "met"),
        ("blanks and commas", " , ,, ", H100, "met"),
        ("equal", "cuda=12.4", H100, "met"),
        ("equal, trailing zeros", "cuda=12.4.0.0", H100, "met"),
        ("equal, a zero that isn't trailing", "cuda=12.04", H100, "met"),
        ("not equal", "cuda!=12.5", H100, "met"),
        ("not equal, trailing zeros", "cuda!=12.4.0", H100,
            "cuda!=12.4.0 is not met: cuda is 12.4; update the driver, or use an image for an older CUDA"),
        ("less", "driver<551", H100, "met"),
        ("less than itself", "driver<550.163.1", H100, "driver<550.163.1 is not met: driver is 550.163.01"),
        ("less or equal", "driver<=550.163.1", H100, "met"),
        ("greater", "driver>550.163", H100, "met"),
        ("greater than itself", "driver>550.163.01", H100, "driver>550.163.01 is not met: driver is 550.163.01"),
        ("greater or equal", "driver>=550.163.01", H100, "met"),
        ("numbers, not text", "driver>=99", H100, "met"),
        ("longer is greater", "driver>550", H100, "met"),
        ("arch", "arch>=8.0", H100, "met"),
        ("arch, not met", "arch<9", H100, "arch<9 is not met: arch is 9.0"),
        ("brand", "brand=nvidia", H100, "met"),
        ("brand of another case", "brand=NVIDIA", H100, "met"),
        ("brand, not met", "brand=tesla", H100, "brand=tesla is not met: brand is nvidia"),
        ("another brand", "brand!=geforce", H100, "met"),
        ("another brand, not met", "brand!=Nvidia", H100, "brand!=Nvidia is not met: brand is nvidia"),
        ("property of another case", "CUDA>=12,Driver>=550", H100, "met"),
    ]);
}

#[test]
#[rustfmt::skip] // a row a line
fn and_or() {
    rows(&[
        ("AND", "cuda>=12.0,driver>=550", H100, "met"),
        ("AND, the second fails", "cuda>=12.0,driver>=560", H100, "driver>=560 is not met: driver is 550.163.01"),
        ("AND, empty parts", ",cuda>=12.0,,driver>=550,", H100, "met"),
        ("OR, the first", "cuda>=12.0 driver>=560", H100, "met"),
        ("OR, the second", "cuda>=13.0 driver>=550", H100, "met"),
        ("OR, blanks", "  cuda>=13.0   driver>=550 ", H100, "met"),
        ("OR, an empty part is none", "cuda>=13.0 ,", H100,
            "cuda>=13.0 is not met: cuda is 12.4; update the driver, or use an image for an older CUDA"),
        ("OR, none", "driver>=560 arch>=10", H100,
            "driver>=560 is not met: driver is 550.163.01 (nor is the other alternative)"),
        ("OR of ANDs, none", "cuda>=13,driver>=580 brand=tesla,driver>=470 arch<8", H100,
            "cuda>=13 is not met: cuda is 12.4 (nor is any of 2 other alternatives); update the driver, or use an image for an older CUDA"),
        ("NVIDIA's image, new driver", CUDA_124, H100, "met"),
        ("NVIDIA's image, old driver of its branch", CUDA_124, "cuda 11.4 driver 470.239.06 arch 7.0 brand tesla", "met"),
        ("NVIDIA's image, old driver of none", CUDA_124, "cuda 12.2 driver 535.161.08 arch 7.0 brand tesla",
            "cuda>=12.4 is not met: cuda is 12.2 (nor is any of 4 other alternatives); update the driver, or use an image for an older CUDA"),
        ("NVIDIA's image, GeForce", CUDA_124, "cuda 11.4 driver 470.239.06 arch 8.6 brand geforce",
            "cuda>=12.4 is not met: cuda is 11.4 (nor is any of 4 other alternatives); update the driver, or use an image for an older CUDA"),
    ]);
}

#[test]
#[rustfmt::skip] // a row a line
fn what_is_not_known() {
    rows(&[
        ("brand", "brand=tesla", PROCFS, "brand=tesla can't be decided: brand is not known"),
        ("another brand isn't met either", "brand!=tesla", PROCFS, "brand!=tesla can't be decided: brand is not known"),
        ("arch", "arch>=8.0", PROCFS, "arch>=8.0 can't be decided: arch is not known"),
        ("cuda", "cuda>=12.0", "driver 550", "cuda>=12.0 can't be decided: cuda is not known"),
        ("an alternative is met without it", "brand=tesla cuda>=12.0", PROCFS, "met"),
        ("NVIDIA's image needs no brand here", CUDA_124, PROCFS, "met"),
        ("nor where no alternative depends on it", CUDA_124, "cuda 12.2 driver 535.161.08",
            "cuda>=12.4 is not met: cuda is 12.2 (nor is any of 4 other alternatives); update the driver, or use an image for an older CUDA"),
        ("but here one does", CUDA_124, "cuda 11.4 driver 470.239.06",
            "cuda>=12.4 is not met: cuda is 11.4; brand=tesla can't be decided: brand is not known (nor is any of 3 other alternatives); update the driver, or use an image for an older CUDA"),
        ("beside what fails it doesn't matter", "brand=tesla,driver>=560", PROCFS, "driver>=560 is not met: driver is 550.163.01"),
    ]);
}

#[test]
#[rustfmt::skip] // a row a line
fn expressions_that_are_none() {
    const VERSION: &str = "is not a version of dotted numbers";
    let bad = |expression: &str, why: &str| {
        let has = said(expression, H100);
        assert_eq!(has, format!("invalid expression {expression:?}: {why}"));
    };
    bad("nonsense", "no comparison (=, !=, <, <=, >, >=)");
    bad("cuda12", "no comparison (=, !=, <, <=, >, >=)");
    bad(">=12", "unknown property \"\" (cuda, driver, arch, brand)");
    bad("memory>=16", "unknown property \"memory\" (cuda, driver, arch, brand)");
    bad("cuda=>12", "unknown comparison \"=>\"");
    bad("cuda==12", "unknown comparison \"==\"");
    bad("cuda!12", "unknown comparison \"!\"");
    bad("cuda<>12", "unknown comparison \"<>\"");
    bad("cuda>=", &format!("\"\" {VERSION}"));
    bad("cuda>=12.", &format!("\"12.\" {VERSION}"));
    bad("cuda>=.5", &format!("\".5\" {VERSION}"));
    bad("cuda>=12..4", &format!("\"12..4\" {VERSION}"));
    bad("cuda>=12.x", &format!("\"12.x\" {VERSION}"));
    bad("cuda>=-1", &format!("\"-1\" {VERSION}"));
    bad("cuda>=+1", &format!("\"+1\" {VERSION}"));
    bad("cuda>=18446744073709551616", &format!("\"18446744073709551616\" {VERSION}"));
    bad("brand>=tesla", "brands have no order: only = and !=");
    bad("brand=", "no value");
    // One that would be met doesn't hide it.
    assert_eq!(said("cuda>=12.0 x", H100), "invalid expression \"x\": no comparison (=, !=, <, <=, >, >=)");
    assert_eq!(said("brand=\u{1b}[2J", H100), "brand=\\u{1b}[2J is not met: brand is nvidia");
}

/// Every requirement must hold for every GPU; the error says which didn't, and of which GPU.
#[test]
fn each_of_each() {
    let (new, old) = (
        known(H100),
        known("cuda 12.4 driver 550.163.01 arch 7.0 brand tesla"),
    );
    let gpus = [new.facts("GPU 0 (GPU-a)"), old.facts("GPU 1 (GPU-b)")];
    let parse = |name: &str, text: &str| Requirement::parse(name, text).unwrap();
    let cuda = parse("NVIDIA_REQUIRE_CUDA", "cuda>=12.0");
    let arch = parse("NVIDIA_REQUIRE_ARCH", "arch>=8.0");
    check(&[cuda.clone(), arch.clone()], &gpus[..1]).unwrap();
    check(std::slice::from_ref(&cuda), &gpus).unwrap();
    let said = check(&[cuda.clone(), arch.clone()], &gpus).unwrap_err();
    assert_eq!(
        said.to_string(),
        "NVIDIA_REQUIRE_ARCH: GPU 1 (GPU-b): arch>=8.0 is not met: arch is 7.0"
    );
    // No GPU is no proof.
    let said = check(std::slice::from_ref(&cuda), &[]).unwrap_err();
    assert_eq!(
        said.to_string(),
        "NVIDIA_REQUIRE_CUDA: no GPU to hold it against"
    );
    check(&[parse("NVIDIA_REQUIRE_X", ",")], &[]).unwrap();
    check(&[], &[]).unwrap();
}

/// Without a GPU only the driver counts.
#[test]
fn the_driver_alone() {
    let version = |text: &str| Version::parse(text).unwrap();
    let (cuda, driver) = (version("12.4"), version("550.163.01"));
    let said = |text: &str, cuda: Option<&Version>| {
        let requirement = Requirement::parse("NVIDIA_REQUIRE_X", text).unwrap();
        check_driver(&[requirement], cuda, &driver).map_err(|e| e.to_string())
    };
    assert_eq!(said("cuda>=12.4,arch>=10,brand=tesla", Some(&cuda)), Ok(()));
    assert_eq!(
        said("driver>=560", Some(&cuda)),
        Err("NVIDIA_REQUIRE_X: driver: driver>=560 is not met: driver is 550.163.01".into())
    );
    assert_eq!(
        said("cuda>=12.4", None),
        Err("NVIDIA_REQUIRE_X: driver: cuda>=12.4 can't be decided: cuda is not known".into())
    );
}

#[test]
fn versions_are_ordered() {
    let texts = [
        "0",
        "1",
        "9.9",
        "10",
        "10.0.1",
        "10.1",
        "550.54",
        "550.163.01",
        "560",
    ];
    for (i, a) in texts.iter().enumerate() {
        for (j, b) in texts.iter().enumerate() {
            let (x, y) = (Version::parse(a).unwrap(), Version::parse(b).unwrap());
            assert_eq!(x.cmp(&y), i.cmp(&j), "{a} against {b}");
            let zero = Version::parse(&format!("{b}.0")).unwrap();
            assert_eq!(x == zero, i == j, "{a} against {b}.0");
        }
    }
    assert_eq!(
        Version::parse("550.163.01").unwrap().to_string(),
        "550.163.01"
    );
}
