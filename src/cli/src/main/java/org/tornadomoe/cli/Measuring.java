package org.tornadomoe.cli;

import org.tornadomoe.config.Int8Scheme;
import picocli.CommandLine.Option;

/** The options of what measures. */
final class Measuring {
    @Option(
            names = "--runs",
            paramLabel = "N",
            defaultValue = "20",
            description = "Runs of which the median is taken; default ${DEFAULT-VALUE}.")
    int runs = 20;

    @Option(
            names = "--scheme",
            paramLabel = "S",
            defaultValue = "w8a8_channel",
            description = "What is int8: ${COMPLETION-CANDIDATES}; default ${DEFAULT-VALUE}.")
    Int8Scheme scheme = Int8Scheme.W8A8_CHANNEL;

    /** @throws IllegalArgumentException naming the option that is wrong */
    void check() {
        if (runs < 1) {
            throw new IllegalArgumentException("--runs: expected a positive number, got " + runs);
        }
    }
}
