//! `NVIDIA_REQUIRE_*`: parsed and evaluated for each GPU.
