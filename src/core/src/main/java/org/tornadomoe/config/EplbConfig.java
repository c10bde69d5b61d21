package org.tornadomoe.config;

/**
 * Expert load balancing of a layer whose experts are sharded over several devices (vLLM: {@code EPLBConfig}): popular
 * experts get copies, and every so often experts move, so that the devices have about as much to do. A step is a call
 * of the layer.
 *
 * @param windowSize the steps whose load counts, the last ones before a rearrangement
 * @param stepInterval steps from one rearrangement to the next; the first comes after a quarter of it
 * @param numRedundantExperts copies there are room for, on all devices together; with the layer's experts a multiple of
 *     the devices. Without any, experts move but no device shares one with another
 * @param logBalancedness whether mean by maximum of the devices' loads is logged, at level INFO
 * @param logBalancednessInterval steps from one such line to the next
 * @param useAsync whether calls go on while experts are loaded where they move to; if not, the call that is the
 *     interval's last does it
 */
public record EplbConfig(
        int windowSize,
        int stepInterval,
        int numRedundantExperts,
        boolean logBalancedness,
        int logBalancednessInterval,
        boolean useAsync) {

    /** vLLM's: a window of 1000, an interval of 3000, no copies, no log, while calls go on. */
    public static final EplbConfig DEFAULT = new EplbConfig(1000, 3000, 0, false, 1, true);

    /**
     * Checks the numbers.
     *
     * @throws IllegalArgumentException naming the one that doesn't fit
     */
    public EplbConfig {
        requirePositive("windowSize", windowSize);
        requirePositive("stepInterval", stepInterval);
        requirePositive("logBalancednessInterval", logBalancednessInterval);
        if (numRedundantExperts < 0) {
            throw new IllegalArgumentException("numRedundantExperts: expected 0 or more, got " + numRedundantExperts);
        }
    }

    private static void requirePositive(String name, int value) {
        if (value < 1) {
            throw new IllegalArgumentException(name + ": expected a positive number, got " + value);
        }
    }

    public EplbConfig withWindowSize(int windowSize) {
        return new EplbConfig(
                windowSize, stepInterval, numRedundantExperts, logBalancedness, logBalancednessInterval, useAsync);
    }

    public EplbConfig withStepInterval(int stepInterval) {
        return new EplbConfig(
                windowSize, stepInterval, numRedundantExperts, logBalancedness, logBalancednessInterval, useAsync);
    }

    public EplbConfig withNumRedundantExperts(int numRedundantExperts) {
        return new EplbConfig(
                windowSize, stepInterval, numRedundantExperts, logBalancedness, logBalancednessInterval, useAsync);
    }

    /** With a line in the log every so many steps; 0 for none. */
    public EplbConfig withLogBalancedness(int interval) {
        return new EplbConfig(
                windowSize, stepInterval, numRedundantExperts, interval > 0, Math.max(1, interval), useAsync);
    }

    public EplbConfig withUseAsync(boolean useAsync) {
        return new EplbConfig(
                windowSize, stepInterval, numRedundantExperts, logBalancedness, logBalancednessInterval, useAsync);
    }
}
