//! NVIDIA's hooks lowered to steps on the root's descriptor.
