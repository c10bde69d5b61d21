package org.tornadomoe.parallel;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.quant.Int8Experts;

/** Loads a layer as its sharding says, on one device or several. */
public final class ShardedLayer {
    private ShardedLayer() {}

    /**
     * Loads the layer, one device after the other. The weights are copied, but with load balancing also read later,
     * when experts move: then {@code whole} must stay open until the kernel is closed.
     *
     * @param whole all of the layer's weights
     * @param check is given each part while its weights are at hand
     * @throws IllegalArgumentException if {@code whole} is a part itself and there are several devices
     * @throws org.tornadomoe.kernel.MoeExecutionException if a device refused it, with its name
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
     * How the experts lie of a layer that {@link #load} gave.
     *
     * @return null without load balancing
     */
    public static @Nullable ExpertBalance balance(MoeKernel kernel) {
        return kernel instanceof ParallelKernel parallel ? parallel.balance() : null;
    }
}
