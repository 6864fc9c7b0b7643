"""This machine: progress, forked jobs, the allocator, the device."""
