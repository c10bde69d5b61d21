package org.tornadomoe.oracle;

import java.util.Arrays;
import java.util.List;
import java.util.Locale;

/** What can compute a layer. */
public enum Int8MoeBackend {
    /** vLLM's name for its GPU kernels, and the slot that TornadoVM's task graphs fill here. */
    TRITON,
    /** The definition in float64: slow, and what everything else is tested against. */
    REFERENCE;

    /** The spelling on the command line. */
    @Override
    public String toString() {
        return name().toLowerCase(Locale.ROOT);
    }

    /**
     * The backends to try for what a user asked for, in order.
     *
     * @param name {@code auto}, or one backend's name
     * @throws IllegalArgumentException listing what is known
     */
    static List<Int8MoeBackend> candidates(String name) {
        if (name.equals("auto")) {
            return List.of(values());
        }
        for (Int8MoeBackend backend : values()) {
            if (backend.toString().equals(name)) {
                return List.of(backend);
            }
        }
        throw new IllegalArgumentException(
                "backend: expected auto or one of " + Arrays.toString(values()) + ", got '" + name + "'");
    }
}
