"""Networks and their adapters to the sensor contract."""
