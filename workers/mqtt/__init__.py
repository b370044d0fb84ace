"""The MQTT bridge: streams as devices of Home Assistant, and questions over MQTT."""
