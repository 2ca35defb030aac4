//! The newest CUDA version of a driver branch.

/// Driver branch (the number before the first dot) and the CUDA version its libcuda implements, newest
/// first. From the CUDA Toolkit release notes, table "CUDA Toolkit and Corresponding Driver Versions"
/// (docs.nvidia.com/cuda/cuda-toolkit-release-notes, the editions of 9.1, 11.6, 13.2 Update 2 and 13.3), whose
/// first driver of a branch is given here: earlier ones of the branch are betas of an older CUDA.
const BRANCHES: [(&str, &str, &str); 33] = [
    ("610", "610.43.02", "13.3"),
    ("595", "595.45.04", "13.2"),
    ("590", "590.44.01", "13.1"),
    ("580", "580.65.06", "13.0"),
    ("575", "575.51.03", "12.9"),
    ("570", "570.26", "12.8"),
    ("560", "560.28.03", "12.6"),
    ("555", "555.42.02", "12.5"),
    ("550", "550.54.14", "12.4"),
    ("545", "545.23.06", "12.3"),
    ("535", "535.54.03", "12.2"),
    ("530", "530.30.02", "12.1"),
    ("525", "525.60.13", "12.0"),
    ("520", "520.61.05", "11.8"),
    ("515", "515.43.04", "11.7"),
    ("510", "510.39.01", "11.6"),
    ("495", "495.29.05", "11.5"),
    ("470", "470.42.01", "11.4"),
    ("465", "465.19.01", "11.3"),
    ("460", "460.27.03", "11.2"),
    ("455", "455.23", "11.1"),
    ("450", "450.36.06", "11.0"),
    ("440", "440.33", "10.2"),
    ("418", "418.39", "10.1"),
    ("410", "410.48", "10.0"),
    ("396", "396.26", "9.2"),
    ("390", "390.46", "9.1"),
    ("387", "387.26", "9.1"),
    ("384", "384.81", "9.0"),
    ("375", "375.26", "8.0"),
    ("367", "367.48", "8.0"),
    ("352", "352.31", "7.5"),
    ("346", "346.46", "7.0"),
];

/// The newest CUDA version of a driver, as `12.4`. `None` for a branch that NVIDIA's table doesn't have:
/// a guess would let a program start that then fails, or refuse one that would run.
pub(super) fn newest(driver: &str) -> Option<&'static str> {
    let branch = driver.split('.').next()?;
    let (_, first, cuda) = BRANCHES.iter().find(|(known, ..)| *known == branch)?;
    (numbers(driver)? >= numbers(first)?).then_some(*cuda)
}

fn numbers(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches() {
        for (driver, cuda) in [
            ("550.163.01", Some("12.4")),
            ("550.54.14", Some("12.4")),
            ("550.40.07", None), // a beta of the branch
            ("535.309.01", Some("12.2")),
            ("580.65.06", Some("13.0")),
            ("565.57.01", None), // no toolkit was published with this branch
            ("9999.1", None),
            ("550", None),
            ("550.x", None),
            ("", None),
            ("550.99999999999999999999", None),
        ] {
            assert_eq!(newest(driver), cuda, "{driver}");
        }
        assert!(BRANCHES.is_sorted_by(|a, b| numbers(a.1) > numbers(b.1)));
        assert!(
            BRANCHES
                .iter()
                .all(|(b, first, _)| first.split('.').next() == Some(b))
        );
    }
}
