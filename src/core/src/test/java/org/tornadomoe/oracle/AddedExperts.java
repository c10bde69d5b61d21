package org.tornadomoe.oracle;

import org.tornadomoe.config.Int8MoeBackend;

/** A kernel class as a user would add one. */
public final class AddedExperts extends FakeExperts {
    public AddedExperts() {
        super("AddedExperts", Int8MoeBackend.TRITON, 1);
    }
}
