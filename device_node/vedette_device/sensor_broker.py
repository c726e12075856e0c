"""How this node reaches the broker of the site's sensors, which is not Vedette's own."""

from __future__ import annotations

import ssl

from vedette_core.runtime.identity import read_secret
from vedette_device.settings import SensorBrokerSection
from vedette_schemas.errors import ConfigError

Login = tuple[str, str]


def site_broker_context(section: SensorBrokerSection) -> tuple[ssl.SSLContext | None, Login | None]:
    """TLS context and (user, password) for the sensors' broker; None where the settings have none.

    Raises:
        ConfigError: certificates or password cannot be read.
    """
    context = None
    if section.ca is not None:
        try:
            context = ssl.create_default_context(cafile=section.ca)
        except (OSError, ssl.SSLError) as fault:
            raise ConfigError(f"[sensor.broker] ca {section.ca}: cannot be read ({fault}); expected PEM") from fault
    login = None
    if section.username:
        password = b"" if section.password_file is None else read_secret(section.password_file)
        login = (section.username, password.decode("utf-8", "replace").rstrip("\n"))
    return context, login
