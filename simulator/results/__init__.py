"""What a run came to: its row, its times, its report and its figures."""
