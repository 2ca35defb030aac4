//! The Container Device Interface: reading, resolving, applying and writing CDI specs.
