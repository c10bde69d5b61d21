package org.tornadomoe.cli;

import org.tornadomoe.config.Int8Quantization;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** The options of commands that measure. */
final class Measuring {
    @Option(
            names = "--runs",
            paramLabel = "N",
            defaultValue = "20",
            description = "Number of runs in a measurement, whose median is the result; default ${DEFAULT-VALUE}.")
    int runs = 20;

    @Mixin
    Scheme scheme = new Scheme();

    Int8Quantization quantization() {
        return scheme.quantization();
    }

    /** @throws IllegalArgumentException naming the invalid option */
    void check() {
        quantization();
        if (runs < 1) {
            throw new IllegalArgumentException("--runs: expected a positive number, got " + runs);
        }
    }
}
