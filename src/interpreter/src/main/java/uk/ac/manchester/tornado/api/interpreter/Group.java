package uk.ac.manchester.tornado.api.interpreter;

import java.lang.reflect.Array;
import java.util.ArrayList;
import java.util.List;

/** A work-group: its position in the grid and its local memory. One object runs many groups, one after the other. */
abstract class Group implements AutoCloseable {
    final Launch launch;
    final Integer[] id = new Integer[3];
    final Integer[] globalSize = new Integer[3];
    final Integer[] localSize = new Integer[3];
    private final List<LocalArray> locals = new ArrayList<>();
    long index;
    /** The number of barriers that the group has passed. */
    int phase;

    Group(Launch launch) {
        this.launch = launch;
        for (int d = 0; d < 3; d++) {
            globalSize[d] = launch.grid.global()[d];
            localSize[d] = launch.grid.local()[d];
        }
    }

    /** Runs the group with this number. */
    final void run(long number) {
        index = number;
        int[] place = launch.grid.group(number);
        for (int d = 0; d < 3; d++) {
            id[d] = place[d];
        }
        locals.clear();
        phase = 0;
        if (launch.races != null) {
            launch.races.clearLocals();
        }
        runItems();
    }

    abstract void runItems();

    /** Waits until all work-items of the group have arrived. */
    abstract void barrier(WorkItem item);

    /** Takes part in an operation of the work-item's warp. */
    abstract Object collective(WorkItem item, Warp.Operation operation, Object operand);

    @Override
    public void close() {}

    /** An array that the work-items of the group share; all work-items allocate in the same order. */
    Object local(int ordinal, Class<?> component, int length) {
        if (ordinal == locals.size()) {
            Object array = Array.newInstance(component, length);
            locals.add(new LocalArray(array, length, "local array " + (ordinal + 1)));
            if (launch.races != null) {
                launch.races.addLocal(array, length);
            }
        }
        LocalArray local = locals.get(ordinal);
        Class<?> type = local.array.getClass().getComponentType();
        if (local.length != length || type != component) {
            throw new Fault(local.name() + ": other work-items of the group allocated " + local.length + " of "
                    + type.getSimpleName() + " here, this one " + length + " of " + component.getSimpleName());
        }
        return local.array;
    }

    @SuppressWarnings("ReferenceEquality") // compares identity
    LocalArray find(Object array) {
        for (LocalArray local : locals) {
            if (local.array == array) {
                return local;
            }
        }
        return null;
    }

    void name(Object array, String name) {
        LocalArray local = find(array);
        if (local != null) {
            local.name(name);
        }
    }
}
