"""This process: its devices, peer processes, interrupts, files and terminal."""
