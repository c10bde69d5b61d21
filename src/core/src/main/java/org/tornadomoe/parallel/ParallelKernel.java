package org.tornadomoe.parallel;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.Map;
import java.util.concurrent.locks.ReentrantLock;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.host.HostRouter;
import org.tornadomoe.kernel.Adapters;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.kernel.Profiled;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.parallel.DeviceParts.Part;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.RankWeights;

/**
 * One layer on several devices at the same time. Every device gets the hidden states and computes its part of the
 * output on its own thread. The caller waits for all, and adds the parts in the order of the devices, in float, so that
 * the same input gives the same bits. With 16-bit hidden states both the parts and their sum are rounded to 16 bits.
 *
 * <p>If the devices can add the parts themselves ({@link MoeKernel#joinedWith}), they do so from the second call on.
 * The first call computes both sums: if the bits differ, or the devices fail, the host goes on adding.
 *
 * <p>If a device fails, the call fails with its name once the other devices have finished. Then nothing is written to
 * the output, and the next call uses all devices again. Calls take turns; a {@link #lane} has its own threads and
 * partial outputs.
 *
 * <p>With load balancing an {@link ExpertMover} moves experts, and there is one lane.
 */
final class ParallelKernel implements MoeKernel, Adapters, Profiled {
    private static final System.Logger LOG = System.getLogger(ParallelKernel.class.getName());

    private final Sharding sharding;
    private final FusedMoeConfig config;
    private final @Nullable HostRouter router;
    private final DeviceParts parts;
    private final OutputSum sum;
    private final ReentrantLock turn = new ReentrantLock(true);
    private final @Nullable ExpertMover mover;

    /** The joint kernel of the devices; null if there is none, or not yet. */
    private volatile @Nullable MoeKernel joined;

    /** Whether joining these parts was already tried. */
    private boolean isJoinTried;

    /**
     * A layer without parts yet.
     *
     * @param loader loads experts that move
     * @param balancer decides where experts go; null if they don't move
     */
    private ParallelKernel(
            Sharding sharding,
            @Nullable HostRouter router,
            @Nullable PartLoader loader,
            @Nullable LoadBalancer balancer) {
        this.sharding = sharding;
        this.router = router;
        config = sharding.config();
        parts = new DeviceParts(sharding.ranks(), bytes(config.maxNumTokens()));
        sum = new OutputSum(parts, config.inDtype());
        mover = loader == null || balancer == null
                ? null
                : new ExpertMover(loader, balancer, parts, turn, this::separate);
    }

    /** Loads each rank of a sharding on its device. Throws what {@link ShardedLayer#load} throws. */
    static ParallelKernel load(Sharding sharding, Int8MoeOracle oracle, Int8Experts whole, PartCheck check) {
        EplbConfig eplb = sharding.eplb();
        int devices = sharding.ranks().size();
        FusedMoeConfig config = sharding.config();
        PartLoader loader = new PartLoader(sharding, oracle, whole, check);
        LoadBalancer balancer = eplb == null ? null : new LoadBalancer(eplb, config.globalNumExperts(), devices);
        HostRouter router = sharding.isRoutedByHost() && !config.router().isHandedIn()
                ? new HostRouter(config, whole.router())
                : null;
        ParallelKernel kernel = new ParallelKernel(sharding, router, loader, balancer);
        try {
            for (int rank = 0; rank < devices; rank++) {
                int number = rank;
                int[] experts = balancer == null
                        ? sharding.experts(rank)
                        : balancer.placement().experts(rank);
                kernel.parts.add(() -> loader.load(number, experts));
            }
            if (kernel.mover != null) {
                kernel.mover.place();
            }
            return kernel;
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, kernel::close);
            throw failure;
        }
    }

    /** None with load balancing: all lanes would have to switch at once. */
    @Override
    public @Nullable MoeKernel lane() {
        if (mover != null) {
            return null;
        }
        ParallelKernel lane = new ParallelKernel(sharding, router, null, null);
        try {
            for (Part part : parts.all()) {
                if (!lane.parts.add(() -> part.kernel().lane())) {
                    lane.close();
                    return null;
                }
            }
            return lane;
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, lane::close);
            throw failure;
        }
    }

    private long bytes(int tokens) {
        return (long) config.inDtype().bytes() * tokens * config.hiddenDim();
    }

    @Override
    public void forward(
            MemorySegment hidden,
            int tokens,
            MemorySegment output,
            @Nullable ChosenExperts chosen,
            int @Nullable [] slotOfToken) {
        turn.lock();
        try {
            MemorySegment given = parts.readable(hidden, bytes(tokens));
            ChosenExperts handed = handed(given, tokens, chosen);
            MoeKernel together = joined;
            if (together != null && slotOfToken == null && !parts.isTimed()) {
                together.forward(given, tokens, output, handed != null ? handed : chosen, null);
            } else {
                parts.each(part -> {
                    // The chosen experts come back from the first device.
                    ChosenExperts own = handed != null ? handed : part.rank() == 0 ? chosen : null;
                    part.kernel().forward(given, tokens, part.output(), own, slotOfToken);
                    return part;
                });
                sum.add(tokens * config.hiddenDim(), output);
                if (!isJoinTried && slotOfToken == null) {
                    join(given, tokens, output, handed);
                }
            }
            if (handed != null && chosen != null && handed != chosen) {
                System.arraycopy(handed.ids(), 0, chosen.ids(), 0, handed.ids().length);
                System.arraycopy(handed.weights(), 0, chosen.weights(), 0, handed.weights().length);
            }
            if (mover != null) {
                mover.passed();
            }
        } finally {
            turn.unlock();
        }
    }

    /** Lets the devices add the parts of the output themselves, if they can and their output has the same bits. */
    private void join(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts handed) {
        isJoinTried = true;
        MoeKernel together = null;
        Throwable why = null;
        try (Arena once = Arena.ofConfined()) {
            List<MoeKernel> others =
                    parts.all().stream().skip(1).map(Part::kernel).toList();
            together = parts.first().kernel().joinedWith(others);
            if (together == null) {
                return;
            }
            MemorySegment sum = once.allocate(bytes(tokens), 64);
            together.forward(hidden, tokens, sum, handed, null);
            if (sum.mismatch(output.asSlice(0, sum.byteSize())) == -1) {
                joined = together;
                return;
            }
            why = new MoeExecutionException("their sum differs from the host's");
        } catch (RuntimeException | Error failure) {
            why = failure;
        }
        if (together != null) {
            Cleanup.after(why, together::close);
        }
        if (why instanceof VirtualMachineError error) {
            throw error;
        }
        LOG.log(System.Logger.Level.WARNING, "the host adds what the devices compute: " + why.getMessage());
        LOG.log(System.Logger.Level.DEBUG, "the devices' own sum", why);
    }

    @Override
    public MemorySegment allocate(long bytes, Arena arena) {
        return parts.first().kernel().allocate(bytes, arena);
    }

    /** Closes the joint kernel, before parts are replaced or closed. */
    private void separate() {
        MoeKernel together = joined;
        joined = null;
        isJoinTried = false;
        if (together != null) {
            together.close();
        }
    }

    /** The placement of the experts; null without load balancing. */
    @Nullable
    ExpertBalance balance() {
        return mover == null ? null : mover.balance();
    }

    /**
     * The choice of experts to pass to the devices: the caller's or, if the devices' choices could differ, the host's;
     * null to let each device choose.
     */
    private @Nullable ChosenExperts handed(MemorySegment hidden, int tokens, @Nullable ChosenExperts chosen) {
        if (config.router().isHandedIn()) {
            return chosen;
        }
        if (router == null) {
            return null;
        }
        float[] x = new float[tokens * config.hiddenDim()];
        HiddenStates.read(config.inDtype(), hidden, x, x.length);
        return router.routeOnAllCores(x, tokens);
    }

    /** For each kernel, the time of the slowest device. */
    @Override
    public Map<String, Long> profile(MemorySegment hidden, int tokens) {
        turn.lock();
        try {
            return parts.profile(parts.readable(hidden, bytes(tokens)), tokens);
        } finally {
            turn.unlock();
        }
    }

    @Override
    public void timeStages() {
        parts.timeStages();
    }

    @Override
    public Map<String, Long> stageTimes() {
        return parts.stageTimes();
    }

    /** If one device refuses the adapter, no device keeps it. */
    @Override
    public void setAdapter(int slot, @Nullable LoraAdapter adapter) {
        turn.lock();
        try {
            put(slot, adapter);
        } catch (RuntimeException | Error failure) {
            if (adapter != null) {
                Cleanup.after(failure, () -> put(slot, null));
            }
            throw failure;
        } finally {
            turn.unlock();
        }
    }

    private void put(int slot, @Nullable LoraAdapter adapter) {
        parts.each(part -> {
            FusedMoeConfig rank = sharding.ranks().get(part.rank()).config();
            LoraAdapter own =
                    adapter == null || sharding.isExpertParallel() ? adapter : RankWeights.columns(adapter, rank);
            Adapters.of(part.kernel()).setAdapter(slot, own);
            return part;
        });
    }

    @Override
    public String device() {
        return parts.device();
    }

    @Override
    public long deviceBytes() {
        return bytesByDevice().stream().mapToLong(Long::longValue).sum();
    }

    @Override
    public List<Long> bytesByDevice() {
        MoeKernel together = joined;
        return parts.all().stream()
                .map(part -> part.kernel().deviceBytes()
                        + (part.rank() == 0 && together != null ? together.deviceBytes() : 0))
                .toList();
    }

    /** Closes all parts, also those after one that fails, after waiting for a running move. */
    @Override
    public void close() {
        if (mover != null) {
            mover.close();
        }
        Cleanup.all(this::separate, parts::close);
    }
}
