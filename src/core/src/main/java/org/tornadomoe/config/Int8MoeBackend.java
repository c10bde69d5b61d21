package org.tornadomoe.config;

import java.util.Locale;

/**
 * A backend: a group of kernel classes. The oracle tries backends in order, and each backend's classes in their order.
 */
public enum Int8MoeBackend {
    /** vLLM's name for its GPU kernels; here it runs TornadoVM's task graphs. */
    TRITON,
    /** The CPU alone. */
    CPU,
    /** The definition in float64: slow, and everything else is tested against it. vLLM has no such backend. */
    REFERENCE;

    /** vLLM's value for it, {@code TRITON}. */
    public String value() {
        return name();
    }

    /** The user's spelling, {@code triton}. */
    @Override
    public String toString() {
        return name().toLowerCase(Locale.ROOT);
    }
}
