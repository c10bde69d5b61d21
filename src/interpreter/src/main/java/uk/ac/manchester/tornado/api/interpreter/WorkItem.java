package uk.ac.manchester.tornado.api.interpreter;

import uk.ac.manchester.tornado.api.types.HalfFloat;

/** One work-item of a launch: the implementation of a kernel's context. */
public final class WorkItem {
    private static final Integer[] SMALL = new Integer[Grid.MAX_GROUP];

    static {
        for (int i = 0; i < SMALL.length; i++) {
            SMALL[i] = i;
        }
    }

    private static final ThreadLocal<WorkItem> CURRENT = new ThreadLocal<>();
    /**
     * The work-item that some thread entered last. A thread that finds its own work-item here needn't read {@link
     * #CURRENT}: it overwrites this field when it enters another, so it can't find one that it has left.
     */
    private static WorkItem entered;

    final Group group;
    /** Index within the group; x varies fastest. */
    final int linear;
    /** The frame in which it waits; null if it has its own thread. */
    final Frame frame;
    /** Its number within the grid plus one, if races are checked. */
    final int mark;

    private final Races races;

    private int allocations;
    private AsyncCopies copies;
    /** The thread that runs this work-item, once entered. */
    private Thread thread;

    WorkItem(Group group, int linear, Frame frame) {
        this.group = group;
        this.linear = linear;
        this.frame = frame;
        this.races = group.launch.races;
        this.mark = races == null ? 0 : Math.toIntExact(group.index * group.launch.grid.groupSize() + linear + 1);
    }

    /** The work-item that this thread runs, or null. */
    public static WorkItem current() {
        WorkItem item = entered;
        return item != null && item.thread == Thread.currentThread() ? item : CURRENT.get();
    }

    /** Sets the work-item that this thread runs; null for none. */
    static void enter(WorkItem item) {
        if (item != null) {
            item.thread = Thread.currentThread();
        }
        CURRENT.set(item);
        entered = item;
    }

    /** Records that this work-item reads an element, if races are checked. */
    public void reads(Object array, int index) {
        reads(array, index, 0);
    }

    void reads(Object array, int index, int site) {
        if (races != null) {
            races.read(this, array, index, site);
        }
    }

    /** Records that this work-item writes an element, if races are checked. */
    public void writes(Object array, int index) {
        writes(array, index, 0);
    }

    void writes(Object array, int index, int site) {
        if (races != null) {
            races.write(this, array, index, site, false);
        }
    }

    /** Records that this work-item updates an element atomically, if races are checked. */
    public void updates(Object array, int index) {
        if (races != null) {
            races.write(this, array, index, 0, true);
        }
    }

    public Integer groupId(int dimension) {
        return group.id[dimension];
    }

    public Integer localId(int dimension) {
        int[] local = group.launch.grid.local();
        return switch (dimension) {
            case 0 -> SMALL[linear % local[0]];
            case 1 -> SMALL[linear / local[0] % local[1]];
            default -> SMALL[linear / local[0] / local[1]];
        };
    }

    public Integer globalId(int dimension) {
        Grid grid = group.launch.grid;
        return grid.offset()[dimension] + group.id[dimension] * grid.local()[dimension] + localId(dimension);
    }

    public Integer globalSize(int dimension) {
        return group.globalSize[dimension];
    }

    public Integer localSize(int dimension) {
        return group.localSize[dimension];
    }

    /** Global id and group, for messages. */
    String position() {
        return group.launch.position(group.index, linear);
    }

    public void barrier() {
        group.barrier(this);
    }

    public Object local(Class<?> component, int length) {
        return group.local(allocations++, component, length);
    }

    public float sum(float value) {
        return (Float) group.collective(this, Warp.Operation.SUM, value);
    }

    public float broadcastFirst(float value) {
        return (Float) group.collective(this, Warp.Operation.BROADCAST_FIRST, value);
    }

    public float shuffleDown(float value, int delta) {
        return (Float) group.collective(this, Warp.Operation.SHUFFLE_DOWN, new Warp.Shuffle(value, delta));
    }

    /** Adds the product of a 16x32 and a 32x8 int8 tile to a 16x8 int32 tile, each spread over the warp's lanes. */
    public int[] mma(byte[] a, byte[] b, int[] c) {
        return (int[]) group.collective(this, Warp.Operation.MMA_INT8, new Warp.Fragments(a, b, c));
    }

    /** The same for a 16x16 and a 16x8 tile of halves and a 16x8 tile of floats. */
    public float[] mma(HalfFloat[] a, HalfFloat[] b, float[] c) {
        return (float[]) group.collective(this, Warp.Operation.MMA_HALF, new Warp.HalfFragments(a, b, c));
    }

    /** The byte offsets of all lanes, each its own. */
    public int[] offsets(int byteOffset) {
        return (int[]) group.collective(this, Warp.Operation.LOAD_MATRIX, byteOffset);
    }

    /** Starts a copy to local memory; the element has no value until the copy completes. */
    public void copyAsync(int[] into, int index, int value) {
        CheckedMemory.checkIndex(into, into.length, index);
        CheckedMemory.poison(into, index);
        writes(into, index);
        copies().issue(into, index, value);
    }

    public void commitCopies() {
        copies().commit();
    }

    /** Completes all but the last {@code remaining} committed groups of copies. */
    public void awaitCopies(int remaining) {
        copies().await(remaining, this);
    }

    private AsyncCopies copies() {
        if (copies == null) {
            copies = new AsyncCopies();
        }
        return copies;
    }

    /** This work-item's lane in its warp. */
    public int lane() {
        return linear % Warp.LANES;
    }
}
