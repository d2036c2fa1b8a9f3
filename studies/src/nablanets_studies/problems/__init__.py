"""Problems with known solutions, and real measurements."""
