# Writes the texts of Metal kernels with all that they include as a table for kvtuner-metal-source.cpp:
#   cmake -DKVTUNER_METAL_UPSTREAM=.../ggml/src -DKVTUNER_METAL_OUT=FILE -P embed.cmake
set(upstream "${KVTUNER_METAL_UPSTREAM}/ggml-common.h" "${KVTUNER_METAL_UPSTREAM}/ggml-metal/ggml-metal-impl.h"
    "${KVTUNER_METAL_UPSTREAM}/ggml-metal/kernels/common.h")
file(GLOB ours "${CMAKE_CURRENT_LIST_DIR}/*.metal" "${CMAKE_CURRENT_LIST_DIR}/kvtuner-metal-*.h")
file(GLOB formats "${CMAKE_CURRENT_LIST_DIR}/../format/*.h")
set(KVTUNER_METAL_TEXTS ${upstream} ${ours} ${formats})
set(table "")
foreach(file IN LISTS KVTUNER_METAL_TEXTS)
    file(READ "${file}" text)
    get_filename_component(name "${file}" NAME)
    string(APPEND table "{ \"${name}\", R\"kvtuner(${text})kvtuner\" },\n")
endforeach()
file(WRITE "${KVTUNER_METAL_OUT}" "${table}")
