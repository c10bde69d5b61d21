package org.tornadomoe.oracle;

import org.tornadomoe.modular.FusedMoeExperts;

/** What the oracle chose. */
public record Selection(Int8MoeBackend backend, FusedMoeExperts experts) {}
