package org.tornadomoe.kernel;

/**
 * What a layer takes of a device's memory, in bytes.
 *
 * @param int8 the layer's int8 values by themselves
 * @param weights these as they lie there, padded, with their scales, zero points and biases
 * @param workspace everything else: the router, adapters, and what lies between the stages for the most tokens of a
 *     call
 */
public record DeviceMemory(long int8, long weights, long workspace) {
    /** All of it. */
    public long bytes() {
        return weights + workspace;
    }

    /** Weights by their int8 values: what the order in which they lie and their scales add. */
    public double overhead() {
        return (double) weights / int8;
    }
}
