package org.tornadomoe.kernel;

/**
 * The device memory that a layer needs, in bytes.
 *
 * @param int8 the layer's int8 values alone
 * @param weights the weights in the device's layout: padded, with scales, zero points and biases
 * @param workspace everything else: router, adapters, and the intermediate buffers for the maximum number of tokens per
 *     call
 */
public record DeviceMemory(long int8, long weights, long workspace) {
    /** The total. */
    public long bytes() {
        return weights + workspace;
    }

    /** Weights divided by int8 values: the overhead of the layout and the scales. */
    public double overhead() {
        return (double) weights / int8;
    }
}
