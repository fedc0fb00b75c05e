"""Training and export. Untrusted: a bad trainer gives a poor robot, never an unsafe one."""
