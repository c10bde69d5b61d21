package org.tornadomoe.config;

import java.util.Locale;

/** A slot for kernel classes. The oracle tries slots in order, and a slot's classes in theirs. */
public enum Int8MoeBackend {
    /** vLLM's name for its GPU kernels, and the slot that TornadoVM's task graphs fill here. */
    TRITON,
    /** The CPU alone. */
    CPU,
    /** The definition in float64: slow, what everything else is tested against, and not one of vLLM's. */
    REFERENCE;

    /** vLLM's value for it, {@code TRITON}. */
    public String value() {
        return name();
    }

    /** The spelling of a user, {@code triton}. */
    @Override
    public String toString() {
        return name().toLowerCase(Locale.ROOT);
    }
}
