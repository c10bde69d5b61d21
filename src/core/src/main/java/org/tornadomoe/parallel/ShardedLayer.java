package org.tornadomoe.parallel;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.quant.Int8Experts;

/** Loads a layer on one device or several, as its sharding says. */
public final class ShardedLayer {
    private ShardedLayer() {}

    /**
     * Loads the layer, one device after the other. It copies the weights. With load balancing it also reads them later,
     * when experts move, so {@code whole} must then stay open until the kernel is closed.
     *
     * @param whole all of the layer's weights
     * @param check checks each part while its weights are available
     * @throws IllegalArgumentException if {@code whole} is a part itself and there are several devices
     * @throws org.tornadomoe.kernel.MoeExecutionException if a device refuses its part; names the device
     */
    public static MoeKernel load(Sharding sharding, Int8MoeOracle oracle, Int8Experts whole, PartCheck check) {
        if (sharding.ranks().size() == 1) {
            MoeKernel kernel = oracle.makeInt8MoeKernel(sharding.ranks().getFirst(), whole);
            try {
                check.check(kernel, sharding.ranks().getFirst().config(), whole);
                return kernel;
            } catch (RuntimeException | Error failure) {
                Cleanup.after(failure, kernel::close);
                throw failure;
            }
        }
        if (whole.isPart()) {
            throw new IllegalArgumentException("experts: expected a whole layer for several devices, got a part of "
                    + whole.w13().experts() + " experts");
        }
        return ParallelKernel.load(sharding, oracle, whole, check);
    }

    /**
     * The placement of the experts of a layer from {@link #load}.
     *
     * @return null without load balancing
     */
    public static @Nullable ExpertBalance balance(MoeKernel kernel) {
        return kernel instanceof ParallelKernel parallel ? parallel.balance() : null;
    }
}
