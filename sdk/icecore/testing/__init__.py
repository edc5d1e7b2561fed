"""What tests of icecore, and of things built on it, share: a log in memory and the contract every log passes."""
