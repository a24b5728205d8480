"""What a webhook request costs fasthook and its peers, each beside bench/limit.c. See bench/README.md."""
