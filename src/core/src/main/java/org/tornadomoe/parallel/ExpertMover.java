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
 * Moves experts between devices by load, while calls go on. The devices whose experts change load them beside those
 * that they have, on further threads; between two calls all change over, and the old ones are closed. Before, what that
 * takes is compared with what the devices have. Where it doesn't fit, or a device fails at it, everything stays as it
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

    /** What moves experts while calls go on. */
    private @Nullable Thread mover;

    private volatile boolean closing;

    /**
     * Experts as they are placed first.
     *
     * @param turn is held by a call, and by who changes over
     * @param separate gives up what devices do together, before parts are replaced
     */
    ExpertMover(PartLoader loader, LoadBalancer balancer, DeviceParts parts, Lock turn, Runnable separate) {
        sharding = loader.sharding();
        this.loader = loader;
        this.balancer = balancer;
        this.parts = parts;
        this.turn = turn;
        this.separate = separate;
    }

    /** After a call, by whoever has the turn. */
    void passed() {
        List<int[]> loads = parts.all().stream()
                .map(part -> Replicated.of(part.kernel()).expertLoads())
                .toList();
        if (balancer.passed(loads)) {
            rearrange();
        }
    }

    /** Now, or while calls go on; not while experts are moving. */
    private void rearrange() {
        long[] load = balancer.window();
        ExpertPlacement before = balancer.placement();
        if (!balancer.config().useAsync()) {
            rearrange(before, load);
        } else if (mover == null || !mover.isAlive()) {
            mover = Thread.ofPlatform().name("moe-eplb").daemon().start(() -> rearrange(before, load));
        }
    }

    /** Whatever fails leaves the placement as it was. */
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

    /** Why the devices can't have the experts that come beside those that go; null if they can. */
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
                        "%s would need %,d bytes of memory while they move, %,d for those that come beside %,d, and"
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

    /** Loads what changes, one device after the other. */
    private void load(ExpertPlacement before, ExpertPlacement after, List<Part> into) {
        for (Part part : parts.all()) {
            if (!closing && !before.sameExperts(after, part.rank())) {
                Part fresh = parts.start(
                        part.rank(), part.output(), () -> loader.load(part.rank(), after.experts(part.rank())));
                into.add(Objects.requireNonNull(fresh));
            }
        }
    }

    /** Puts parts in the place of those before, between two calls; which are to be closed now. */
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

    /** Has each device take the pairs that are its own where experts are placed by now. */
    void place() {
        place(balancer.placement());
    }

    /**
     * Has each device take the pairs that are its own; also those whose experts stay, since other devices may have
     * copies of them now.
     */
    private void place(ExpertPlacement placement) {
        parts.all().forEach(part -> Replicated.of(part.kernel()).setReplicas(placement.replicas(part.rank())));
    }

    /** All, also those after one that fails. */
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

    /** Waits for experts that are moving, which stop at the next device. */
    @Override
    public void close() {
        closing = true;
        if (mover != null) {
            DeviceThread.awaitEnd(mover);
        }
    }
}
