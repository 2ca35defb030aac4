//! The few facts of an ELF file that placement needs: machine, class, SONAME, one CUDA note.
