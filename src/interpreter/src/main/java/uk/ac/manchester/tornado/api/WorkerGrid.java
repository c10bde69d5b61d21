package uk.ac.manchester.tornado.api;

/** How many work-items run a task, and in groups of how many. Every array has three values: x, y, z. */
public interface WorkerGrid {
    int dimension();

    /** Work-items. */
    long[] getGlobalWork();

    /** Work-items of a group, or null: the runtime chooses. */
    long[] getLocalWork();

    long[] getNumberOfWorkgroups();

    long[] getGlobalOffset();

    void setGlobalWork(long x, long y, long z);

    void setLocalWork(long x, long y, long z);

    void setNumberOfWorkgroupsToNull();

    void setLocalWorkToNull();

    void setGlobalOffset(long x, long y, long z);
}
