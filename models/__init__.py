"""Networks, losses and what describes them: no files, no devices, no logging."""
