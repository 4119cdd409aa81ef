"""The LSTM autoencoder pipeline: aggregation, encoding, training, evaluation, visualisation, and a runner over them."""
