"""How clients may reach a broker: plainly, by TLS, by SASL, by client certificates. As Kafka's own settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from icecore.errors import SettingsError

MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_SAFE: Final = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Listener:
    """One door of a broker. Without any argument it is plain TCP.

    Args:
        certificate: PEM file of the broker's private key (PKCS #8) and its certificates; with it, the door speaks TLS.
        client_ca: PEM file of the CA that clients' certificates must come from; with it, a certificate is required.
        users: names and passwords; with them, clients authenticate by SASL.
        mechanisms: the SASL mechanisms that are offered.
    """

    certificate: Path | None = None
    client_ca: Path | None = None
    users: Mapping[str, str] = field(default_factory=dict)
    mechanisms: tuple[str, ...] = MECHANISMS

    def __post_init__(self) -> None:
        for word in (*self.users, *self.users.values()):
            if not _SAFE.fullmatch(word):
                raise SettingsError(f"expected a name or password of {_SAFE.pattern}, got another of {len(word)} chars")
        if self.client_ca and not self.certificate:
            raise SettingsError("expected a certificate of the broker beside client_ca, got none")
        for mechanism in self.mechanisms:
            if mechanism not in MECHANISMS:
                raise SettingsError(f"expected a mechanism of {', '.join(MECHANISMS)}, got {mechanism}")

    @property
    def protocol(self) -> str:
        """Kafka's word for it: `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`."""
        tls = self.certificate is not None
        if self.users:
            return "SASL_SSL" if tls else "SASL_PLAINTEXT"
        return "SSL" if tls else "PLAINTEXT"

    def settings(self, name: str) -> dict[str, str]:
        """Kafka's settings for it, under the listener's `name`."""
        found: dict[str, str] = {}
        if self.certificate:
            found |= {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(self.certificate)}
        if self.client_ca:
            found |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(self.client_ca)}
            found |= {"ssl.client.auth": "required"}
        if self.users:
            found["sasl.enabled.mechanisms"] = ",".join(self.mechanisms)
            known = " ".join(f'user_{user}="{password}"' for user, password in self.users.items())
            security = "org.apache.kafka.common.security"
            for mechanism in self.mechanisms:
                login = f"{security}.scram.ScramLoginModule required"
                if mechanism == "PLAIN":
                    login = f"{security}.plain.PlainLoginModule required {known}"
                found[f"{mechanism.lower()}.sasl.jaas.config"] = f"{login};"
        return {f"listener.name.{name.lower()}.{key}": value for key, value in found.items()}

    def scram(self) -> list[str]:
        """What the storage tool is told, so that a new cluster knows the users' SCRAM secrets from the start."""
        return [
            f"{mechanism}=[name={user},password={password}]"
            for mechanism in self.mechanisms
            if mechanism != "PLAIN"
            for user, password in self.users.items()
        ]
