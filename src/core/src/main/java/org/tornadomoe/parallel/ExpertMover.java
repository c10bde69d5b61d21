package org.tornadomoe.parallel;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.locks.Lock;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.host.DeviceThread;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.Profiled;
import org.tornadomoe.kernel.Replicated;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.parallel.DeviceParts.Part;

/**
 * Moves experts between devices by load, while calls go on. A device whose experts change loads the new ones beside the
 * old ones, on another thread. Between two calls all devices switch, and the old experts are closed. Before loading it
 * compares the memory needed with the memory available. If it doesn't fit, or a device fails, everything stays as it
 * was.
 */
final class ExpertMover implements AutoCloseable {
    private static final System.Logger LOG = System.getLogger(ParallelKernel.class.getName());

    private final Sharding sharding;
    private final PartLoader loader;
    private final LoadBalancer balancer;
    private final DeviceParts parts;
    private final Lock turn;
    private final Runnable separate;

    /** The thread that moves experts while calls go on. */
    private @Nullable Thread mover;

    private volatile boolean closing;

    /**
     * Starts with the initial placement.
     *
     * @param turn is held by each call, and while switching
     * @param separate ends the joint kernel of the devices, before parts are replaced
     */
    ExpertMover(PartLoader loader, LoadBalancer balancer, DeviceParts parts, Lock turn, Runnable separate) {
        sharding = loader.sharding();
        this.loader = loader;
        this.balancer = balancer;
        this.parts = parts;
        this.turn = turn;
        this.separate = separate;
    }

    /** Called after each call, by the holder of the turn. */
    void passed() {
        List<int[]> loads = parts.all().stream()
                .map(part -> Replicated.of(part.kernel()).expertLoads())
                .toList();
        if (balancer.passed(loads)) {
            rearrange();
        }
    }

    /** Rearranges now or in the background; not while experts are moving. */
    private void rearrange() {
        long[] load = balancer.window();
        ExpertPlacement before = balancer.placement();
        if (!balancer.config().useAsync()) {
            rearrange(before, load);
        } else if (mover == null || !mover.isAlive()) {
            mover = Thread.ofPlatform().name("moe-eplb").daemon().start(() -> rearrange(before, load));
        }
    }

    /** Any failure leaves the placement as it was. */
    private void rearrange(ExpertPlacement before, long[] load) {
        List<Part> loaded = new ArrayList<>();
        List<Part> unused = loaded;
        String why = null;
        try {
            ExpertPlacement after = EplbPolicy.next(before, load);
            if (after.imbalance(load) < before.imbalance(load)) {
                why = shortage(before, after);
                if (why == null) {
                    load(before, after, loaded);
                    unused = changeOver(after, loaded);
                }
            }
        } catch (RuntimeException | Error failure) {
            why = String.valueOf(failure.getMessage());
            LOG.log(System.Logger.Level.DEBUG, "experts could not be moved", failure);
        } finally {
            closeAll(unused);
        }
        String reason = why;
        if (reason != null) {
            LOG.log(System.Logger.Level.WARNING, "experts stay where they are: " + reason);
        }
        if (unused == loaded) {
            turn.lock();
            try {
                balancer.stayed(reason);
            } finally {
                turn.unlock();
            }
        }
    }

    /** Why the devices lack the memory for the new experts beside the old ones; null if they have it. */
    private @Nullable String shortage(ExpertPlacement before, ExpertPlacement after) {
        Map<String, Long> held = new LinkedHashMap<>();
        Map<String, Long> coming = new LinkedHashMap<>();
        for (Part part : parts.all()) {
            held.merge(part.device(), part.kernel().deviceBytes(), Long::sum);
            if (!before.sameExperts(after, part.rank())) {
                coming.merge(
                        part.device(),
                        loader.bytes(
                                part.rank(),
                                after.experts(part.rank()),
                                part.kernel().deviceBytes()),
                        Long::sum);
            }
        }
        for (Selection rank : sharding.ranks()) {
            long limit = rank.experts().memoryLimit(rank.config());
            long there = held.getOrDefault(rank.device(), 0L);
            long more = coming.getOrDefault(rank.device(), 0L);
            if (more > limit - there) {
                return String.format(
                        Locale.ROOT,
                        "%s would need %,d bytes of memory during the move, %,d for the new experts beside %,d, and"
                                + " has %,d",
                        rank.device(),
                        there + more,
                        more,
                        there,
                        limit);
            }
        }
        return null;
    }

    /** Loads the parts that change, one device after the other. */
    private void load(ExpertPlacement before, ExpertPlacement after, List<Part> into) {
        for (Part part : parts.all()) {
            if (!closing && !before.sameExperts(after, part.rank())) {
                Part fresh = parts.start(
                        part.rank(), part.output(), () -> loader.load(part.rank(), after.experts(part.rank())));
                into.add(Objects.requireNonNull(fresh));
            }
        }
    }

    /** Replaces parts between two calls; returns the old ones, to be closed. */
    private List<Part> changeOver(ExpertPlacement after, List<Part> loaded) {
        turn.lock();
        try {
            if (closing) {
                return loaded;
            }
            separate.run();
            List<Part> before = parts.all();
            List<Part> all = new ArrayList<>(before);
            List<Part> replaced = new ArrayList<>();
            for (Part part : loaded) {
                if (parts.isTimed()) {
                    Profiled.timeStages(part.kernel());
                }
                replaced.add(all.set(part.rank(), part));
            }
            parts.replace(all);
            try {
                place(after);
            } catch (RuntimeException | Error failure) {
                parts.replace(before);
                Cleanup.after(failure, this::place);
                throw failure;
            }
            balancer.moved(after);
            return replaced;
        } finally {
            turn.unlock();
        }
    }

    /** Tells each device its pairs under the current placement. */
    void place() {
        place(balancer.placement());
    }

    /**
     * Tells each device its pairs; also devices whose experts stay, because other devices may now have copies of them.
     */
    private void place(ExpertPlacement placement) {
        parts.all().forEach(part -> Replicated.of(part.kernel()).setReplicas(placement.replicas(part.rank())));
    }

    /** Closes all parts, also those after one that fails. */
    private static void closeAll(List<Part> unused) {
        for (Part part : unused) {
            try {
                part.close();
            } catch (RuntimeException | Error failure) {
                LOG.log(System.Logger.Level.WARNING, "closing what experts moved from, on " + part.device(), failure);
            }
        }
    }

    ExpertBalance balance() {
        turn.lock();
        try {
            return balancer.balance();
        } finally {
            turn.unlock();
        }
    }

    /** Waits for a running move, which stops before its next device. */
    @Override
    public void close() {
        closing = true;
        if (mover != null) {
            DeviceThread.awaitEnd(mover);
        }
    }
}
