package org.tornadomoe.config;

/**
 * Expert load balancing of a layer whose experts are sharded over several devices (vLLM: {@code EPLBConfig}): popular
 * experts get copies, and experts move at intervals, so that the devices get about equal work. A step is one call of
 * the layer.
 *
 * @param windowSize number of steps before a rearrangement whose load counts
 * @param stepInterval steps from one rearrangement to the next; the first comes after a quarter of it
 * @param numRedundantExperts number of copies, on all devices together; plus the layer's experts it must be a multiple
 *     of the number of devices. With 0, experts move but none has a copy
 * @param logBalancedness whether to log the devices' mean load divided by the maximum load, at level INFO
 * @param logBalancednessInterval steps from one such log line to the next
 * @param useAsync whether calls go on while devices load the experts that move to them; if not, the last call of the
 *     interval loads them
 */
public record EplbConfig(
        int windowSize,
        int stepInterval,
        int numRedundantExperts,
        boolean logBalancedness,
        int logBalancednessInterval,
        boolean useAsync) {

    /** vLLM's defaults: a window of 1000, an interval of 3000, no copies, no log, asynchronous. */
    public static final EplbConfig DEFAULT = new EplbConfig(1000, 3000, 0, false, 1, true);

    /**
     * Checks the numbers.
     *
     * @throws IllegalArgumentException naming the number that is out of range
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

    /** Logs a line every {@code interval} steps; 0 for none. */
    public EplbConfig withLogBalancedness(int interval) {
        return new EplbConfig(
                windowSize, stepInterval, numRedundantExperts, interval > 0, Math.max(1, interval), useAsync);
    }

    public EplbConfig withUseAsync(boolean useAsync) {
        return new EplbConfig(
                windowSize, stepInterval, numRedundantExperts, logBalancedness, logBalancednessInterval, useAsync);
    }
}
