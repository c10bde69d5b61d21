package uk.ac.manchester.tornado.api.interpreter;

import java.lang.reflect.Array;
import java.util.ArrayList;
import java.util.List;

/** A work-group: its place in the grid and its local memory. One object runs many groups, one after the other. */
abstract class Group implements AutoCloseable {
    final Launch launch;
    final Integer[] id = new Integer[3];
    final Integer[] globalSize = new Integer[3];
    final Integer[] localSize = new Integer[3];
    private final List<LocalArray> locals = new ArrayList<>();
    long index;

    Group(Launch launch) {
        this.launch = launch;
        for (int d = 0; d < 3; d++) {
            globalSize[d] = launch.grid.global()[d];
            localSize[d] = launch.grid.local()[d];
        }
    }

    /** Runs the group of this number; x counts fastest. */
    final void run(long number) {
        Grid grid = launch.grid;
        index = number;
        id[0] = (int) (number % grid.groups(0));
        id[1] = (int) (number / grid.groups(0) % grid.groups(1));
        id[2] = (int) (number / grid.groups(0) / grid.groups(1));
        locals.clear();
        runItems();
    }

    abstract void runItems();

    /** Waits until all work-items of the group are here. */
    abstract void barrier(WorkItem item);

    /** Takes part in an operation of the work-item's warp. */
    abstract Object collective(WorkItem item, Warp.Operation operation, Object operand);

    @Override
    public void close() {}

    /** The array that the work-items of the group share; they allocate in the same order. */
    Object local(int ordinal, Class<?> component, int length) {
        if (ordinal == locals.size()) {
            locals.add(new LocalArray(Array.newInstance(component, length), length, "local array " + (ordinal + 1)));
        }
        LocalArray local = locals.get(ordinal);
        if (local.length() != length || local.array().getClass().getComponentType() != component) {
            throw new Fault(local.name() + ": expected " + local.length() + " elements of type "
                    + local.array().getClass().getComponentType() + " as the group's other work-items allocated, got "
                    + length + " of " + component);
        }
        return local.array();
    }

    @SuppressWarnings("ReferenceEquality") // two arrays are not one
    LocalArray find(Object array) {
        for (LocalArray local : locals) {
            if (local.array() == array) {
                return local;
            }
        }
        return null;
    }
}
